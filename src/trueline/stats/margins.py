"""The score interval of a paired difference, and whether it is not worse by more than a margin.

A bootstrap knows nothing of what it did not see: with no broken item among fifty, no resample
breaks one. A claim that nothing got worse needs an interval that does, so it rests on Tango's.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from trueline.errors import UserError
from trueline.stats.clusters import inflation
from trueline.stats.proportions import scored_both
from trueline.stats.resampling import Interval, check_level


def tango_interval(fixed: float, broken: float, n: float, level: float = 0.95) -> Interval:
    """Tango's score interval of the paired difference ``(broken - fixed) / n``.

    It holds the differences D that a score test keeps, with q the chance of a fixed item that is
    likeliest under D (f fixed and b broken of n):

        |b - f - n D| <= z sqrt(n (2 q + D (1 - D)))
        2n q^2 + ((2n - b + f) D - b - f) q - f D (1 - D) = 0

    Args:
        fixed: items that were True before and False after.
        broken: items that were False before and True after.
        n: all items scored both times; may be an effective number, with counts to match.
        level: coverage, between 0 and 1.

    Returns:
        The interval, inside [-1, 1]; it keeps a width where nothing changed.

    Raises:
        UserError: the counts are negative, or exceed ``n``.

    Example:
        >>> low, high = tango_interval(0, 0, 50)
        >>> round(low, 3), round(high, 3)
        (-0.071, 0.071)

    Source: Tango (1998), Statistics in Medicine 17, 891-908.
    """
    check_level(level)
    if min(fixed, broken) < 0 or n <= 0 or fixed + broken > n * (1 + 1e-9):
        raise UserError(f"expected fixed + broken <= n, got {fixed} + {broken} of {n}")
    from scipy.optimize import brentq
    from scipy.stats import norm

    z = float(norm.ppf(0.5 + level / 2))
    value = (broken - fixed) / n

    def excess(difference: float) -> float:
        return _score(fixed, broken, n, difference) - math.copysign(z, value - difference)

    edge = 1e-12
    low = -1.0 if value - edge <= -1 else brentq(excess, -1 + edge, value - edge)
    high = 1.0 if value + edge >= 1 else brentq(excess, value + edge, 1 - edge)
    return Interval(float(low), float(high))


def clustered_tango(
    pairs: Sequence[tuple[int, bool, bool]], groups: Sequence[Hashable] | None, level: float
) -> Interval:
    """Tango's interval of (place, before, after), with the counts that the groups are worth."""
    changes = [float(after) - float(before) for _, before, after in pairs]
    worth = inflation(changes, groups, level)
    fixed, broken = changes.count(-1.0) / worth, changes.count(1.0) / worth
    return tango_interval(fixed, broken, len(changes) / worth, level)


def of_pairs(
    groups: Sequence[Hashable] | None, count: int, pairs: Sequence[tuple[int, bool, bool]]
) -> list[Hashable] | None:
    """The groups of the items that both models were scored on.

    Raises:
        UserError: there is not one group for each of the ``count`` items.
    """
    if groups is None:
        return None
    if len(groups) != count:
        raise UserError(f"expected one group an item, got {len(groups)} for {count}")
    return [groups[place] for place, _, _ in pairs]


def _score(fixed: float, broken: float, n: float, difference: float) -> float:
    """Tango's statistic at a hypothetical difference; 0 at the observed one."""
    linear = (2 * n - broken + fixed) * difference - broken - fixed
    constant = -fixed * difference * (1 - difference)
    q = (math.sqrt(max(linear**2 - 8 * n * constant, 0.0)) - linear) / (4 * n)
    variance = n * (2 * q + difference * (1 - difference))
    return (broken - fixed - n * difference) / math.sqrt(max(variance, 1e-300))


@dataclass(frozen=True, slots=True)
class NonInferiority:
    """Whether a rate got worse by less than a margin that was set beforehand.

    ``bound`` is how much worse the rate may be and ``least`` how much worse it is at least: the
    ends of the interval, as positive numbers for worse; None where nothing was scored. ``shown``
    says that it is not worse by the margin, ``refuted`` that it is.
    """

    margin: float
    bound: float | None
    least: float | None
    level: float

    @property
    def shown(self) -> bool:
        """Whether the whole interval lies below the margin."""
        return self.bound is not None and self.bound < self.margin

    @property
    def refuted(self) -> bool:
        """Whether the whole interval lies beyond the margin."""
        return self.least is not None and self.least > self.margin


def non_inferiority(
    before: Sequence[bool | None],
    after: Sequence[bool | None],
    *,
    margin: float,
    higher_is_worse: bool,
    level: float = 0.95,
    groups: Sequence[Hashable] | None = None,
) -> NonInferiority:
    """Is the model after not worse than before by ``margin`` or more?

    The two-sided interval's end on the bad side is compared with the margin, so that a false
    "not worse" has a chance of at most ``(1 - level) / 2``. Not shown is not the same as worse.
    With ``groups``, counts are those of as many independent items as the groups are worth
    (:func:`~trueline.stats.clusters.inflation`).

    Args:
        before: outcomes of the first model.
        after: outcomes of the second model on the same items, in the same order.
        margin: the largest worsening that would not matter, as a rate between 0 and 1.
        higher_is_worse: True for a failure (over-refusal), False for a success (utility).
        level: coverage of the two-sided interval.
        groups: one label for each item; equal labels fare alike.

    Raises:
        UserError: the margin is not inside (0, 1), or the lists differ in length.

    Example:
        >>> same = [True] * 200
        >>> non_inferiority(same, same, margin=0.05, higher_is_worse=False).shown
        True
        >>> non_inferiority(same[:50], same[:50], margin=0.05, higher_is_worse=False).shown
        False

    Source: Tango (1998); Rao and Scott (1992), Biometrics 48, 577-585 (effective counts).
    """
    if not 0.0 < margin < 1.0:
        raise UserError(f"a margin is a rate between 0 and 1, such as 0.05, got {margin}")
    pairs = scored_both(before, after)
    if not pairs:
        return NonInferiority(margin, None, None, level)
    found = clustered_tango(pairs, of_pairs(groups, len(before), pairs), level)
    least, bound = found if higher_is_worse else (-found.high, -found.low)
    return NonInferiority(margin, bound, least, level)
