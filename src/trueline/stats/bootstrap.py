"""The cluster bootstrap: what fares alike is drawn together."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from trueline.errors import UserError
from trueline.stats.resampling import Interval, check_level, finite

Array: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, slots=True)
class Clusters:
    """Items summed up by group: each group's total and its number of items.

    Args:
        totals: (groups,) sums of the items' values.
        sizes: (groups,) numbers of items.
    """

    totals: Array
    sizes: Array

    @classmethod
    def of(cls, values: Sequence[float], groups: Sequence[Hashable] | None = None) -> Clusters:
        """Sum ``values`` by ``groups``; without groups each item is a group of its own.

        Raises:
            UserError: a value is not finite, or the two differ in length.

        Example:
            >>> Clusters.of([1, 0, 1], ["a", "a", "b"]).totals.tolist()
            [1.0, 1.0]
        """
        numbers = finite("clusters", values)
        if groups is None:
            return cls(numbers, np.ones(len(numbers)))
        if len(groups) != len(numbers):
            raise UserError(f"expected one group a value, got {len(groups)} for {len(numbers)}")
        index: dict[Hashable, int] = {}
        places = np.array([index.setdefault(group, len(index)) for group in groups], dtype=int)
        totals = np.bincount(places, weights=numbers, minlength=len(index)).astype(float)
        return cls(totals, np.bincount(places, minlength=len(index)).astype(float))

    @property
    def count(self) -> int:
        """How many groups there are."""
        return len(self.totals)

    @property
    def mean(self) -> float:
        """The mean over items."""
        return float(self.totals.sum() / self.sizes.sum())

    def variance(self) -> float:
        """The variance of :attr:`mean`, by how the groups differ (Taylor linearization).

        sum_g (t_g - mean * s_g)^2 * m / (m - 1) / n^2, with m groups and n items
        """
        spread = float(((self.totals - self.mean * self.sizes) ** 2).sum())
        return spread * self.count / max(self.count - 1, 1) / float(self.sizes.sum()) ** 2


def cluster_bootstrap(
    clusters: Clusters, *, seed: int, n_resamples: int = 2000, level: float = 0.95
) -> Interval | None:
    """A BCa interval for the mean over items, from resampling whole groups.

    Groups that are alike in total and size are interchangeable, so a resample is a multinomial
    draw over the distinct ones: the same distribution, and no slower for a hundred thousand items.

    Args:
        clusters: the items by group.
        seed: the resamples' seed.
        n_resamples: how many resamples.
        level: coverage, between 0 and 1.

    Returns:
        The interval, or None where resampling shows no spread: fewer than two groups, or groups
        of one mean.

    Source: Efron (1987), JASA 82, 171-185; Davison and Hinkley (1997), Bootstrap Methods, 3.8.
    """
    check_level(level)
    if clusters.count < 2:
        return None
    pairs, counts = np.unique(
        np.column_stack([clusters.totals, clusters.sizes]), axis=0, return_counts=True
    )
    totals, sizes = pairs[:, 0], pairs[:, 1]
    if np.ptp(totals / sizes) == 0.0:
        return None
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(clusters.count, counts / clusters.count, size=n_resamples)
    resampled = (drawn @ totals) / (drawn @ sizes)
    left_out = (clusters.totals.sum() - totals) / (clusters.sizes.sum() - sizes)
    return _bca(resampled, clusters.mean, left_out, counts, level)


def _bca(
    resampled: Array, value: float, left_out: Array, counts: Any, level: float
) -> Interval | None:
    """Percentiles shifted by the resamples' bias and by the jackknife's skewness."""
    from scipy.stats import norm

    if np.ptp(resampled) == 0.0:
        return None
    slack = 1e-12 * max(1.0, abs(value))  # equal fractions may differ in their last digit
    below = float((resampled < value - slack).mean() + (resampled <= value + slack).mean()) / 2
    bias = float(norm.ppf(min(max(below, 0.5 / len(resampled)), 1 - 0.5 / len(resampled))))
    influence = np.average(left_out, weights=counts) - left_out
    cubed, squared = float((counts * influence**3).sum()), float((counts * influence**2).sum())
    skew = cubed / (6 * squared**1.5) if squared > 0 else 0.0
    ends = []
    for tail in ((1 - level) / 2, (1 + level) / 2):
        shifted = bias + float(norm.ppf(tail))
        share = float(norm.cdf(bias + shifted / (1 - skew * shifted)))
        ends.append(float(np.quantile(resampled, share)))
    return Interval(*ends) if all(map(math.isfinite, ends)) else None


def design_effect(values: Sequence[float], groups: Sequence[Hashable] | None) -> float:
    """By how much grouping inflates the variance of a mean, at least 1.

    Where no value differs, nothing can be learnt of it and the groups count as single items.

    Example:
        >>> design_effect([1, 1, 0, 0], ["a", "a", "b", "b"])  # two items, each seen twice
        4.0
        >>> design_effect([1, 1, 0, 0], None)
        1.0
    """
    clusters, items = Clusters.of(values, groups), Clusters.of(values)
    if clusters.count == items.count:
        return 1.0
    if clusters.count == 1:
        return float(items.count)
    alone = float(((items.totals - items.mean) ** 2).mean()) / items.count
    if alone == 0.0:
        return items.count / clusters.count
    return max(clusters.variance() / alone, 1.0)


def blind(clusters: Clusters) -> bool:
    """Whether resampling knows too little: fewer than ten groups differ from the most common one.

    No resample can hold what was never seen, and few hold what was seen once or twice. Intervals
    then come from a score test instead, with counts divided by :func:`design_effect`.

    Example:
        >>> blind(Clusters.of([0.0] * 99 + [1.0])), blind(Clusters.of([0.0, 1.0] * 50))
        (True, False)
    """
    _, counts = np.unique(clusters.totals / clusters.sizes, return_counts=True)
    return bool(clusters.count - counts.max() < 10)
