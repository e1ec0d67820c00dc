"""The few numbers under the summary, read off a run's findings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from trueline.report.blocks import Highlight
from trueline.results import Metric
from trueline.runs.record import Run

Better = Literal["lower", "higher"]

JUDGED: tuple[tuple[str, str, Better], ...] = (
    ("attack success", "Attack success", "lower"),
    ("over-refusal", "Over-refusal", "lower"),
    ("correct answers", "Correct answers", "higher"),
    ("good answers", "Good answers", "higher"),
)
"""How the names of rates begin in findings, what they are called, and which way is good."""

CHANGES: tuple[tuple[str, str, Better], ...] = (
    ("bhattacharyya_distance", "Separation (Bhattacharyya distance)", "higher"),
    ("ranking accuracy", "Ranking accuracy", "higher"),
)
"""Metrics that findings hold twice, ``NAME, before`` and ``NAME, after``."""


def highlights_of(runs: Sequence[Run], is_compared: bool) -> Iterator[Highlight]:
    """A single run's rates and what its training changed; nothing for several, whose comparison
    has highlights of its own."""
    if len(runs) != 1 or is_compared:
        return
    metrics = [metric for finding in runs[0].findings for metric in finding.metrics]
    for start, label, better in JUDGED:
        own = next((m for m in metrics if m.name.startswith(start) and m.value is not None), None)
        if own is not None:
            note = own.name.removeprefix(start).removeprefix(", ")
            yield Highlight(label, own, better=better, note=note)
    for name, label, better in CHANGES:
        before, after = (_named(metrics, f"{name}, {when}") for when in ("before", "after"))
        if before is not None and after is not None:
            change = _named(metrics, f"{name}, change")
            apart = _apart(before, after) if change is None else _moved(change)
            yield Highlight(label, after, before, better, "same data before and after", apart)


def _moved(change: Metric) -> bool:
    """Whether a paired difference's interval leaves out zero."""
    return change.low is not None and change.high is not None and not change.low <= 0 <= change.high


def _apart(a: Metric, b: Metric) -> bool:
    """Whether the intervals leave no value in common: what two findings allow to say."""
    if a.low is None or a.high is None or b.low is None or b.high is None:
        return False
    return a.high < b.low or b.high < a.low


def _named(metrics: Sequence[Metric], name: str) -> Metric | None:
    return next((m for m in metrics if m.name == name and m.value is not None), None)
