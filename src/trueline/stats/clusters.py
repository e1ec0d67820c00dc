"""What fares alike is one witness: variances over groups, honest where there are few of them.

A bootstrap over twenty groups is too narrow: it sees each group's own spread, less what the mean
took of it, and takes a normal quantile for a variance that it hardly knows. So the variance here
is bias-reduced (CR2), its quantile Student's at the degrees of freedom that the groups leave
(Bell and McCaffrey), and no group is less alike within than its own items say.
"""

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

    @property
    def variance(self) -> float:
        """The bias-reduced cluster-robust variance (CR2) of :attr:`mean`; 0 for a single group.

        sum_g (t_g - mean s_g)^2 / (1 - s_g / n) / n^2, which for groups of one size is
        s^2 / m of the m groups' means.
        """
        if self.count < 2:
            return 0.0
        n = self.sizes.sum()
        spread = (self.totals - self.mean * self.sizes) ** 2 / (1 - self.sizes / n)
        return float(spread.sum() / n**2)

    @property
    def freedom(self) -> float:
        """Degrees of freedom of :attr:`variance` by Satterthwaite, for items that are independent.

        The variance is a quadratic form sum_g w_g u_g^2, w_g = 1 / (1 - s_g / n), in
        u_g = t_g - mean s_g with covariances s_g [g = h] - s_g s_h / n:

            (sum_g w_g c_gg)^2 / sum_gh w_g w_h c_gh^2

        It is m - 1 for m groups of one size, and less where a few groups hold most items.

        Example:
            >>> round(Clusters(np.zeros(4), np.array([1.0, 1, 1, 1])).freedom, 9)
            3.0
            >>> round(Clusters(np.zeros(4), np.array([1.0, 1, 1, 9])).freedom, 2)
            1.46
        """
        part = self.sizes / self.sizes.sum()
        # w_g c_gg = s_g; off the diagonal w_g w_h c_gh^2 = n^2 x_g x_h, x = p^2 / (1 - p)
        cross = part**2 / (1 - part)
        below = float((part**2).sum() + cross.sum() ** 2 - (cross**2).sum())
        return 1.0 / below

    def interval(self, level: float = 0.95) -> Interval | None:
        """Student's interval of :attr:`mean`; None where the groups show no spread.

        Example:
            >>> low, high = Clusters.of([1.0, 2.0, 3.0]).interval()
            >>> round(low, 3), round(high, 3)  # as of single values
            (-0.484, 4.484)
        """
        check_level(level)
        if self.count < 2 or self.variance == 0.0:
            return None
        half = _student(level, self.freedom) * math.sqrt(self.variance)
        return Interval(self.mean - half, self.mean + half)


def _student(level: float, freedom: float) -> float:
    from scipy.stats import t

    return float(t.ppf(0.5 + level / 2, freedom))


def inflation(
    values: Sequence[float], groups: Sequence[Hashable] | None, level: float = 0.95
) -> float:
    """How many times fewer independent items would leave an interval as wide; at least 1.

    Score intervals (Wilson's, Tango's) depend on the items through z^2 / n alone. With groups they
    take n divided by the larger of

        (t / z)^2 V / V_0     V the groups' variance of the mean (CR2), V_0 that of independent
                              items, t Student's quantile at the groups' degrees of freedom
        1 + (k - 1) rho       rho the correlation within groups, from how much values differ there
                              (analysis of variance), k = sum_g s_g^2 / n an item's group's size

    The second keeps groups that happen to agree in their means from passing for independent. Where
    no value differs, nothing can be learnt of either, and the groups count as single items.

    Args:
        values: one for each item.
        groups: one label for each item; equal labels fare alike. None where none do.
        level: coverage of the interval that is to be widened.

    Example:
        >>> twenty = [i // 2 for i in range(40)]
        >>> round(inflation([1, 1, 0, 0] * 10, twenty), 2)  # twenty items, each seen twice
        2.4
        >>> inflation([1, 1, 0, 0], None)
        1.0

    Source: Bell and McCaffrey (2002), Survey Methodology 28, 169-181 (variance and degrees of
    freedom); Franco, Little, Louis and Slud (2019), Journal of Survey Statistics and Methodology
    7, 334-364 (score intervals with effective sample sizes); Fleiss and Cuzick (1979).
    """
    check_level(level)
    clusters = Clusters.of(values, groups)
    n = len(values)
    if clusters.count == n or clusters.count == 0:
        return 1.0
    numbers = np.asarray(values, dtype=np.float64)
    total = float(((numbers - numbers.mean()) ** 2).sum())
    if total == 0.0 or clusters.count == 1:
        return n / clusters.count
    within = float((numbers**2).sum() - (clusters.totals**2 / clusters.sizes).sum())
    alike = min(max(1 - within / (n - clusters.count) / (total / n), 0.0), 1.0)
    size = float((clusters.sizes**2).sum()) / n
    ratio = _student(level, clusters.freedom) / _student(level, math.inf)
    return max(ratio**2 * clusters.variance * n**2 / total, 1 + (size - 1) * alike)
