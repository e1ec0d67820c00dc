"""What a selection of pairs looks like beside its controls: cosines, lengths, label errors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import sqrt

from trueline.curation.selection.candidates import ALL, SELECTED
from trueline.data.tally import size
from trueline.records import Example
from trueline.results import Finding, Metric

BINS = 40  # of the histogram of cosines, over [-1, 1]


@dataclass
class Moments:
    """A running mean and variance."""

    n: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, value: float) -> None:
        """One value more (Welford's update)."""
        self.n += 1
        step = value - self.mean
        self.mean += step / self.n
        self.squares += step * (value - self.mean)

    def metric(self, name: str, unit: str = "") -> Metric:
        """The mean with its 95% interval by the normal approximation."""
        if self.n < 2:
            return Metric(name, self.mean if self.n else None, n=self.n, unit=unit)
        half = 1.959964 * sqrt(self.squares / (self.n - 1) / self.n)
        return Metric(name, self.mean, self.mean - half, self.mean + half, self.n, unit=unit)


@dataclass
class Profile:
    """Means of each group and a histogram of cosines, in constant memory."""

    cosine: dict[str, Moments] = field(default_factory=dict)
    length: dict[str, Moments] = field(default_factory=dict)
    bins: dict[str, Counter[int]] = field(default_factory=dict)

    def add(
        self, example: Example, pair: tuple[int, int], cosine: float, groups: Sequence[str]
    ) -> None:
        """Count one candidate pair in its groups and among all."""
        first, second = (size(example.completions[i].content) for i in pair)
        for group in (*groups, ALL):
            self.cosine.setdefault(group, Moments()).add(cosine)
            self.length.setdefault(group, Moments()).add(abs(first - second))
            bin_ = min(int((cosine + 1) / 2 * BINS), BINS - 1)
            self.bins.setdefault(group, Counter())[bin_] += 1

    def finding(self, strategy: str, groups: Sequence[str], errors: Sequence[Metric]) -> Finding:
        """The selection in numbers and words."""
        metrics = [
            moments[group].metric(f"{what}, {group}", unit)
            for what, moments, unit in (
                ("cosine", self.cosine, ""),
                ("length difference", self.length, "characters"),
            )
            for group in (*groups, ALL)
            if group in moments
        ]
        n = self.cosine[SELECTED].n
        summary = f"{n:,} of {self.cosine[ALL].n:,} candidate pairs selected ({strategy})."
        advice = ""
        by_name = {metric.name: metric for metric in errors}
        for what in ("label error by the judge", "label error by second labels"):
            if f"{what}, selected" in by_name:
                others = [f"{by_name[f'{what}, {g}']} ({g})" for g in groups if g != SELECTED]
                against = f" against {' and '.join(others)}" if others else ""
                summary += f" {what[0].upper()}{what[1:]}: {by_name[f'{what}, selected']}{against}."
        if not errors:
            advice = (
                "Whether this selection has fewer wrong labels is not known: give a judge or "
                "second labels."
            )
        centers = [-1 + (2 * i + 1) / BINS for i in range(BINS)]
        figures = {
            "cosines": {
                group: [bins[i] / max(bins.total(), 1) for i in range(BINS)]
                for group, bins in self.bins.items()
            },
            "centers": centers,
        }
        return Finding("selection", summary, [*errors, *metrics], advice, figures)
