"""The training's log as curves: chosen and rejected apart, evaluation dashed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from trueline.report.pictures import CurvePanel, Curves, Line, Tone

Rows: TypeAlias = Sequence[Mapping[str, Any]]

PANELS: tuple[tuple[str, str, tuple[tuple[str, str, Tone], ...]], ...] = (
    ("Loss", "nats", (("loss", "", "main"),)),
    (
        "Log-probability of the answers",
        "nats",
        (("logps/chosen", "chosen", "good"), ("logps/rejected", "rejected", "bad")),
    ),
    (
        "Implicit reward",
        "nats",
        (("rewards/chosen", "chosen", "good"), ("rewards/rejected", "rejected", "bad")),
    ),
    (
        "Error on pictures, against the reference's",
        "mean square",
        (
            ("diffusion/chosen_shift", "chosen", "good"),
            ("diffusion/rejected_shift", "rejected", "bad"),
        ),
    ),
    ("Reward margin", "nats", (("rewards/margins", "", "main"),)),
    (
        "Accuracy",
        "share of pairs",
        (("rewards/accuracies", "reward", "main"), ("gap/ranking_accuracy", "ranking", "other")),
    ),
    (
        "Gradient entanglement",
        "share of pairs",
        (
            ("entangle/case_ideal", "moved as wanted", "good"),
            ("entangle/case_both_fall", "both fall", "bad"),
            ("entangle/case_both_rise", "both rise", "other"),
        ),
    ),
    ("Cosine of chosen's and rejected's gradients", "cosine", (("entangle/cosine", "", "main"),)),
    ("KL from the reference", "nats", (("kl", "", "main"),)),
    ("KL along its own answers", "nats a token", (("answers/kl", "", "main"),)),
    (
        "Its own answers, as the reference reads them",
        "nats a token",
        (
            ("answers/reference_nll", "answers", "main"),
            ("answers/babble_from", "babble from here on", "bad"),
        ),
    ),
    ("Own answers that are none", "share", (("answers/none", "", "bad"),)),
    ("Effective sample size", "completions", (("weights/effective_sample_size", "", "main"),)),
    ("Gradient norm", "", (("grad_norm", "", "main"),)),
)
"""Title, unit and the (metric, name, tone) lines of each training panel; eval_ ones come dashed."""

BOTH = (
    "Chosen and rejected answers apart: a margin grows when the rejected falls, and also when "
    "both fall."
)


def training_curves(rows: Rows, title: str = "") -> Curves | None:
    """What the log holds as panels; None where it holds nothing to draw."""
    panels = []
    for name, unit, lines in PANELS:
        found = [line for spec in lines for line in _lines(rows, *spec)]
        if found:
            panels.append(CurvePanel(name, unit, found))
    if not panels:
        return None
    both = any(line.name == "rejected" for panel in panels for line in panel.lines)
    return Curves(panels, title, BOTH if both else "")


def _lines(rows: Rows, key: str, name: str, tone: Tone) -> Iterator[Line]:
    for prefix, kind, dashed in (("", "training", False), ("eval_", "evaluation", True)):
        steps, values = series(rows, prefix + key)
        if values:
            label = f"{name}, {kind}" if name and dashed else name or kind
            yield Line(label, steps, values, tone, dashed)


def series(rows: Rows, key: str) -> tuple[list[float], list[float]]:
    """Steps and values of a metric, where it was logged and is a finite number."""
    steps, values = [], []
    for row in rows:
        step: Any = row.get("step")
        value: Any = row.get(key)
        numeric = isinstance(value, int | float) and isinstance(step, int | float)
        if numeric and math.isfinite(value):
            steps.append(float(step))
            values.append(float(value))
    return steps, values
