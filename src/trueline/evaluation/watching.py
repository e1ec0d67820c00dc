"""While a model trains: how far what it says is from the reference, and whether it still answers.

Every metric of training can look like success while the model falls to babble: margins and
log-probs are of answers that others wrote. So a few prompts that training does not see are
answered every so many steps, and the answers are read (:mod:`trueline.evaluation.answers`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from transformers import TrainerCallback

from trueline.config import WatchArguments
from trueline.errors import UserError
from trueline.evaluation.answers import (
    Reading,
    Reference,
    Yardstick,
    read_answers,
    roomy,
    yardstick_of,
)
from trueline.evaluation.harness.summarize import BROKEN, NO_LONGER
from trueline.records import Text
from trueline.results import Finding, Metric
from trueline.runs.record import Key
from trueline.stats import rate

log = logging.getLogger(__name__)

PROMPTS, TOKENS = 8, 48
"""Prompts that are answered, and tokens of an answer, where not said otherwise."""


class AnswersCallback(TrainerCallback):
    """Answers a few held-out prompts every so many steps and logs what they show, as ``answers/*``.

    ``answers/kl``: mean KL(policy || reference) of the next token along the model's own greedy
    answers, nats a token. ``answers/reference_nll``: what the reference thinks of them, nats a
    token, and ``answers/babble_from`` from where on they look more like its own answers with the
    words shuffled than like its own answers. ``answers/none``: the share that loops, repeats the
    request or is empty. ``answers/unseen_words``: the share of words that the reference does not
    say. ``answers/seconds``: what the measurement cost; it generates ``len(prompts) * tokens``
    tokens and reads them twice.

    The alarm, a warning in words: half of the answers are none; or they look like babble to the
    reference; or the KL is above a bound of yours. Training goes on as if nobody had looked, unless
    it is to stop.

    Args:
        trainer: that trains; its ``log`` keeps the numbers.
        prompts: a few that training does not see.
        steps: between two measurements.
        reference: the model to measure the distance from, or what opens it; None for the model's
            own base where an adapter is trained.
        tokens: of an answer, at most.
        most_kl: alarm above so many nats a token; None for no such bound.
        stop: end the training at the first alarm, at the end of the step.
        once: does a thing on one process and hands what it returns to all; None does it on each.
        autocast: the precision that the model is asked in; None for its weights'.

    Raises:
        UserError: no prompts, a count below 1, or no reference to measure from.

    Example:
        >>> trainer.add_callback(                                       # doctest: +SKIP
        ...     AnswersCallback(trainer, prompts, steps=50, stop=True))
    """

    def __init__(
        self,
        trainer: Any,
        prompts: Sequence[Text],
        *,
        steps: int,
        reference: Any | None = None,
        tokens: int = TOKENS,
        most_kl: float | None = None,
        stop: bool = False,
        once: Callable[[Callable[[], Any]], Any] | None = None,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        if not prompts or steps < 1 or tokens < 1:
            raise UserError(
                "watching the answers needs a prompt, steps >= 1 and tokens >= 1, got "
                f"{len(prompts)} prompts, steps {steps}, tokens {tokens}"
            )
        if reference is None and not hasattr(trainer.model, "disable_adapter"):
            raise UserError(
                "watching the answers measures from a reference: give reference=MODEL, or train "
                "an adapter"
            )
        self.trainer, self.prompts = trainer, list(prompts)
        self.steps, self.tokens, self.most_kl, self.stop = steps, tokens, most_kl, stop
        self._once, self._autocast = once or (lambda do: do()), autocast
        self._open: Reference = _opener(trainer.model, reference)
        self._yardstick: Yardstick | None = None
        self.alarms: list[str] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure, log and, where it is time to, sound the alarm."""
        if state.global_step % self.steps:
            return
        found = self._once(self.measure)
        self.trainer.log(dict(found))
        said = alarm(found, self.most_kl)
        if said is None:
            return
        self.alarms.append(f"step {state.global_step}: {said}")
        if self.stop:
            control.should_training_stop = True
            said += " Training stops here, as asked."
        if getattr(state, "is_world_process_zero", True):
            log.warning("step %d: %s", state.global_step, said)

    def measure(self) -> dict[str, float]:
        """The metrics of the present weights."""
        began = time.perf_counter()
        tokenizer = self.trainer.processing_class
        with self._autocast():
            if self._yardstick is None:
                self._yardstick = yardstick_of(
                    self._open, tokenizer, self.prompts, tokens=self.tokens
                )
            readings = read_answers(
                self.trainer.model, tokenizer, self.prompts, self._open, self._yardstick,
                tokens=self.tokens,
            )  # fmt: skip
        found = shown(readings, self._yardstick)
        return {**found, "answers/seconds": time.perf_counter() - began}


def shown(readings: Sequence[Reading], yardstick: Yardstick) -> dict[str, float]:
    """Readings as the log has them."""
    none = sum(reading.none for reading in readings)
    found = {"answers/none": none / len(readings), "answers/prompts": float(len(readings))}
    for name, values in (
        ("kl", [r.kl for r in readings]),
        ("reference_nll", [r.nll for r in readings]),
        ("unseen_words", [r.unseen for r in readings]),
        ("babble_from", [yardstick.babble]),
    ):
        known = [value for value in values if value is not None]
        if known:
            found[f"answers/{name}"] = sum(known) / len(known)
    return found


def alarm(found: Mapping[str, float], most_kl: float | None = None) -> str | None:
    """What is wrong with the answers, in words, of what was logged; None where nothing is."""
    if found["answers/none"] >= BROKEN:
        return (
            f"{found['answers/none']:.0%} of the model's answers to held-out prompts are none: "
            "they loop, repeat the request or are empty. It no longer answers."
        )
    kl, nll = found.get("answers/kl"), found.get("answers/reference_nll")
    bound = found.get("answers/babble_from")
    if nll is not None and bound is not None and nll > bound:
        return (
            f"the model's answers look like babble to the reference: {nll:.2f} nats a token; from "
            f"{bound:.2f} on they are nearer to its own answers with the words shuffled than to "
            "its own answers."
        )
    if kl is not None and most_kl is not None and kl > most_kl:
        return f"the model is {kl:.2f} nats a token from the reference, above {most_kl:g}."
    return None


def watch_training(
    trainer: Any,
    prompts: Sequence[Text],
    how: WatchArguments,
    *,
    reference: Any,
    once: Callable[[Callable[[], Any]], Any],
) -> None:
    """Add the callback as the configuration asks for it, with prompts drawn by the seed.

    Raises:
        UserError: fewer prompts with room for an answer than were asked for.
    """
    asked, tokens = how.answers_prompts, how.answers_tokens or TOKENS
    drawn = roomy(
        trainer.model, trainer.processing_class, prompts, count=asked or PROMPTS, tokens=tokens,
        seed=trainer.args.seed, max_length=trainer.args.max_length,
    )  # fmt: skip
    if len(drawn) < (asked or 1):
        raise UserError(
            f"answers_steps needs {asked or 1} different held-out prompts with room for {tokens} "
            f"tokens after them, got {len(drawn)}; hold out more, or lower answers_prompts or "
            "answers_tokens"
        )
    trainer.add_callback(
        AnswersCallback(
            trainer, drawn, steps=how.answers_steps, reference=reference, tokens=tokens,
            most_kl=how.answers_most_kl, stop=how.answers_stop, once=once,
            autocast=trainer.accelerator.autocast,
        )
    )  # fmt: skip


def watched(rows: Sequence[Mapping[str, Any]], how: WatchArguments) -> list[Finding]:
    """What watching found, from the training's log: a finding, and before it that the model no
    longer answers, where the last measurement says so.

    Args:
        rows: of the log.
        how: what was asked for; nothing is found where nothing was.
    """
    if not how.answers_steps:
        return []
    most_kl, stop = how.answers_most_kl, how.answers_stop
    seen = [row for row in rows if "answers/none" in row]
    if not seen:
        return []
    last, prompts = seen[-1], int(seen[-1]["answers/prompts"])
    alarms = [(row["step"], said) for row in seen if (said := alarm(row, most_kl))]
    none = rate("answers that are none", round(last["answers/none"] * prompts), prompts)
    numbers = [none]
    for name, unit in (("kl", "nats"), ("reference_nll", "nats"), ("babble_from", "nats"),
                       ("unseen_words", "rate"), ("seconds", "s")):  # fmt: skip
        if f"answers/{name}" in last:
            numbers.append(Metric(f"answers/{name}", last[f"answers/{name}"], unit=unit))
    kl = f"{last['answers/kl']:.3f} nats a token" if "answers/kl" in last else "nowhere to be found"
    cost = sum(row["answers/seconds"] for row in seen)
    said = (
        f"{prompts} held-out prompts were answered {len(seen)} times, {cost:.1f} s in all. At step "
        f"{last['step']} the model's own answers are {kl} from the reference, {none} of them none."
    )
    if alarms:
        said += f" First alarm at step {alarms[0][0]}: {alarms[0][1]}"
        said += " Training was stopped there." if stop else f" Alarms: {len(alarms)}."
    advice = (
        "Read some answers. Go back to a checkpoint before the alarm, with a smaller learning "
        "rate, fewer steps or a stronger anchor."
    )
    found = [Finding(Key.WATCHED, said, numbers, advice if alarms else "")]
    broken = alarm(last)
    if broken is not None:
        text = f"At step {last['step']} {broken}"
        found.insert(0, Finding(NO_LONGER, text, numbers, advice))
    return found


def _opener(model: Any, reference: Any | None) -> Reference:
    """What opens the reference: a model, the function that is given, or the adapter off."""
    if reference is None:
        return lambda: _WithoutAdapter(model)
    if hasattr(reference, "generate"):
        return lambda: nullcontext(reference)
    opened: Reference = reference
    return opened


class _WithoutAdapter:
    """The model with its adapter off, for as long as it is looked at."""

    def __init__(self, model: Any) -> None:
        self.model, self.off = model, model.disable_adapter()

    def __enter__(self) -> Any:
        self.off.__enter__()
        return self.model

    def __exit__(self, *raised: Any) -> None:
        self.off.__exit__(*raised)
