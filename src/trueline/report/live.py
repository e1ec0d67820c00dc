"""A training while it runs, as a page: where it stands, what is wrong in words, and its curves.

Every alarm is a function of the training's log that says what it sees and what to try, or nothing.
None of them waits for the end: they are what a person who looks at the curves would say.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from trueline.report.blocks import Report, Section, Table, Text
from trueline.report.drawing.numbers import number
from trueline.report.pages.training import series, training_curves

Rows: TypeAlias = Sequence[Mapping[str, Any]]
Alarm: TypeAlias = Callable[[Rows], str | None]

RECENT = 5
"""Logged steps that "now" is the mean of."""

FALL = 5.0
"""Nats that the chosen answers may lose before it is said, where the rejected ones fall, too."""

SPIKE = 10.0
"""Times the usual gradient norm from which on it is said."""

OVERFIT = 0.05
"""Share by which the evaluation's loss may stand above its lowest."""

RISE = 0.1
"""Share by which the error on chosen pictures may stand above the reference's."""

SHOWN = ("loss", "rewards/accuracies", "gap/ranking_accuracy", "logps/chosen", "logps/rejected",
         "diffusion/chosen_shift", "diffusion/rejected_shift", "rewards/margins", "kl",
         "entangle/case_both_fall", "grad_norm", "learning_rate")  # fmt: skip
"""What the table of the newest values holds, where it is logged."""


def live_report(
    name: str, rows: Rows, *, total: int | None, state: str, subtitle: str = "", refresh: int = 0
) -> Report:
    """The page of a training as far as it has come.

    Args:
        name: of the run.
        rows: its log.
        total: steps it is to make, or None.
        state: ``"running"``, ``"finished"``, or why it is neither.
        subtitle: what is trained how, on what.
        refresh: seconds after which a browser loads the page anew; 0 for never.
    """
    step = max((int(row["step"]) for row in rows if "step" in row), default=0)
    said = list(alarms(rows))
    place = f"step {step:,}" + (f" of {total:,}" if total else "")
    done = f" ({step / total:.0%})" if total else ""
    title = {"running": f"{name} at {place}{done}"}.get(state, f"{name}: {state}, {place}")
    count = f"{len(said)} alarm{'s' * (len(said) != 1)}"
    summary = "Nothing is logged yet." if not rows else f"{count}." if said else "No alarm."
    sections = []
    if said:
        sections.append(Section("Alarms", "", [Text(text, note=True) for text in said]))
    curves = training_curves(rows)
    if curves is not None:
        sections.append(Section("Training", "", [curves]))
    newest = list(_newest(rows))
    if newest:
        columns = ("", "first", f"now, mean of the last {RECENT}")
        sections.append(Section("Newest values", "", [Table(columns, newest)]))
    return Report(title, summary, sections, subtitle=subtitle, refresh=refresh)


def _newest(rows: Rows) -> Iterator[list[str | float]]:
    for name in SHOWN:
        values = series(rows, name)[1]
        if values:
            yield [name, values[0], number(_mean(values[-RECENT:]))]


def alarms(rows: Rows) -> Iterator[str]:
    """What is wrong, in words, the worst first."""
    for alarm in ALARMS:
        said = alarm(rows)
        if said is not None:
            yield said


def _not_a_number(rows: Rows) -> str | None:
    for row in rows:
        for name in ("loss", "grad_norm"):
            value = row.get(name)
            if isinstance(value, float) and not math.isfinite(value):
                return (
                    f"The {name.replace('_', ' ')} is {value} at step {row.get('step')}: "
                    "nothing is learned from there on. Stop it; take a smaller learning rate, or "
                    "bf16 instead of fp16, and look at the batch before it."
                )
    return None


def _both_fall(rows: Rows) -> str | None:
    chosen, rejected = (series(rows, f"logps/{side}")[1] for side in ("chosen", "rejected"))
    if len(chosen) <= RECENT or len(rejected) <= RECENT:
        return None
    down, other = (_mean(x[-RECENT:]) - _mean(x[:RECENT]) for x in (chosen, rejected))
    if down > -FALL or other > -FALL:
        return None
    return (
        f"Chosen and rejected answers both become less likely: chosen ones by {-down:.1f} nats, "
        f"rejected ones by {-other:.1f}. A margin that grows so is no gain. Try pair_weighting: "
        "normalized, or an objective that holds the chosen up (dpop, cpo, or a sum with sft)."
    )


def _entangled(rows: Rows) -> str | None:
    values = series(rows, "entangle/case_both_fall")[1]
    if not values or _mean(values[-RECENT:]) <= 0.5:
        return None
    return (
        f"Gradients are entangled: at {_mean(values[-RECENT:]):.0%} of the pairs a step lowers the "
        "chosen answer along with the rejected one."
    )


def _worse_at_chosen(rows: Rows) -> str | None:
    shift, error = (series(rows, f"diffusion/chosen_{name}")[1] for name in ("shift", "error"))
    if not shift or len(shift) != len(error):
        return None
    rise = _mean(shift[-RECENT:])
    rise /= max(_mean(error[-RECENT:]) - rise, 1e-12)
    if rise <= RISE:
        return None
    return (
        f"The error on chosen pictures is {rise:.0%} above the reference's: the model paints what "
        "it is to prefer worse than it did, whatever the accuracy says. Look at the samples; lower "
        "the learning rate or beta, or set sdpo_mu."
    )


def _worse_than_chance(rows: Rows) -> str | None:
    values = series(rows, "rewards/accuracies")[1]
    if len(values) <= 2 * RECENT or _mean(values[-RECENT:]) >= 0.5:
        return None
    return (
        f"The reward prefers the rejected answer in {1 - _mean(values[-RECENT:]):.0%} of pairs. "
        "Look whether chosen and rejected are swapped in the data, and at the learning rate."
    )


def _spiking(rows: Rows) -> str | None:
    steps, values = series(rows, "grad_norm")
    usual = statistics.median(values[:-1]) if len(values) > RECENT else 0.0
    if usual <= 0 or values[-1] <= SPIKE * usual:
        return None
    return (
        f"The gradient's norm at step {steps[-1]:.0f} is {values[-1] / usual:.0f} times its usual "
        "one. If it stays so, take a smaller learning rate or more warm-up."
    )


def _overfitting(rows: Rows) -> str | None:
    steps, values = series(rows, "eval_loss")
    train = series(rows, "loss")[1]
    if len(values) < 3 or not train or values[-1] <= min(values) + OVERFIT * abs(min(values)):
        return None
    best = steps[values.index(min(values))]
    if _mean(train[-RECENT:]) >= _mean(train[:RECENT]):
        return None
    return (
        f"The evaluation's loss was lowest at step {best:.0f} ({number(min(values))}) and is "
        f"{number(values[-1])} now, while the training's still falls: what is learned since is of "
        "these rows alone."
    )


def _drifting(rows: Rows) -> str | None:
    none = series(rows, "answers/none")[1]
    if not none or none[-1] < 0.5:
        return None
    return f"The model no longer answers: {none[-1]:.0%} of what it says is no answer."


ALARMS: tuple[Alarm, ...] = (
    _not_a_number, _drifting, _both_fall, _worse_at_chosen, _worse_than_chance, _entangled,
    _overfitting, _spiking,
)  # fmt: skip
"""In the order in which they are told."""


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values)
