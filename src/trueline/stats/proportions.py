"""Rates and means with the uncertainty that belongs to them.

One convention throughout: an outcome is True where the event that is counted happened. For a
safety rate the event is the failure (an attack that succeeded, a benign prompt that was refused),
so a True that turns False is *fixed* and a False that turns True is *broken*. None means
unscored: it is left out of ``n``, never counted as False.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np

from trueline.errors import UserError
from trueline.results import Metric
from trueline.stats.clusters import Clusters, inflation
from trueline.stats.resampling import Interval, check_level, finite


def wilson(successes: int, n: int, level: float = 0.95) -> Interval | None:
    """Wilson's score interval of a proportion: the rates a score test at ``1 - level`` keeps.

        (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)

    Unlike the normal interval it stays inside [0, 1] and keeps a width at 0 and at n successes.

    Args:
        successes: how often the event happened, 0..n.
        n: how many were scored.
        level: coverage, between 0 and 1.

    Returns:
        The interval, or None where nothing was scored (n = 0).

    Raises:
        UserError: the counts are not 0 <= successes <= n, or the level is not inside (0, 1).

    Example:
        >>> f"{wilson(0, 520).high:.2%}"
        '0.73%'

    Source: Wilson (1927), Journal of the American Statistical Association 22, 209-212.
    """
    check_level(level)
    if not 0 <= successes <= n:
        raise UserError(f"a rate needs 0 <= successes <= n, got {successes} of {n}")
    if n == 0:
        return None
    return _score_interval(successes / n, n, level)


def _score_interval(share: float, n: float, level: float) -> Interval:
    """Wilson's interval; ``n`` may be an effective number of observations."""
    from scipy.stats import norm

    z = float(norm.ppf(0.5 + level / 2))
    half = z * math.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2)
    scale = 1 + z * z / n
    low, high = (share + z * z / (2 * n) - half) / scale, (share + z * z / (2 * n) + half) / scale
    return Interval(0.0 if share == 0 else max(low, 0.0), 1.0 if share == 1 else min(high, 1.0))


def rate(
    name: str,
    outcomes: Sequence[bool | None] | int,
    n: int | None = None,
    *,
    level: float = 0.95,
) -> Metric:
    """The share of outcomes that are True, with its Wilson interval.

    Args:
        name: the metric's name.
        outcomes: one outcome for each item (None where it was not scored), or the number of
            successes, in which case ``n`` is required.
        n: the number scored; only with a count of successes.
        level: coverage of the interval.

    Returns:
        A metric of unit ``"rate"``; value and interval are None where nothing was scored.

    Raises:
        UserError: a count without ``n``, ``n`` beside a list, or an outcome that is no truth value.

    Example:
        >>> print(rate("refused", [True, True, False, None]))
        66.7% [20.8%, 93.9%]
    """
    if isinstance(outcomes, int):
        if n is None:
            raise UserError(f"{name}: a count of successes needs n, the number scored")
        successes, count = int(outcomes), n
    else:
        if n is not None:
            raise UserError(f"{name}: a list of outcomes counts itself; leave n out")
        kept = scored(outcomes)
        successes, count = sum(kept), len(kept)
    found = wilson(successes, count, level)
    if found is None:
        return Metric(name, None, n=0, level=level, unit="rate")
    return Metric(name, successes / count, found.low, found.high, count, level, "rate")


def clustered_share(
    name: str, successes: int, n: int, effect: float, *, level: float = 0.95
) -> Metric:
    """A share whose interval is that of ``n / effect`` observations; :func:`rate` at effect 1.

    Args:
        name: the metric's name.
        successes, n: the counts.
        effect: by how much what fares alike inflates it (:func:`inflation`), at least 1.
        level: coverage of the interval.

    Example:
        >>> print(clustered_share("sensitivity", 90, 100, 1.0))
        90.0% [82.6%, 94.5%]
        >>> print(clustered_share("sensitivity", 90, 100, 4.0))
        90.0% [72.5%, 96.8%]
    """
    plain = rate(name, successes, n, level=level)
    if plain.value is None or effect <= 1.0:
        return plain
    found = _score_interval(plain.value, n / effect, level)
    return Metric(name, plain.value, found.low, found.high, n, level, "rate")


def clustered_rate(
    name: str,
    outcomes: Sequence[bool | None],
    groups: Sequence[Hashable] | None,
    *,
    level: float = 0.95,
) -> Metric:
    """A rate whose items come in groups that fare alike: near-duplicates, attacks on one prompt.

    Wilson's interval of so many independent items as the groups are worth
    (:func:`~trueline.stats.clusters.inflation`). Where every group is one item this is
    :func:`rate`; where no outcome differs, the groups count as single items.

    Args:
        name: the metric's name.
        outcomes: one outcome for each item; None where it was not scored.
        groups: one label for each item; equal labels belong together. None where each stands alone.
        level: coverage of the interval.

    Returns:
        A metric of unit ``"rate"``; ``n`` counts items, not groups.

    Example:
        >>> print(clustered_rate("asr", [False] * 60, [i // 3 for i in range(60)]))
        0.0% [0.0%, 16.1%]
        >>> print(rate("asr", [False] * 60))
        0.0% [0.0%, 6.0%]
    """
    values = scored(outcomes)
    labels = groups
    if groups is not None:
        pairs = zip(outcomes, groups, strict=True)
        labels = [group for outcome, group in pairs if outcome is not None]
    worth = inflation([float(v) for v in values], labels, level)
    return clustered_share(name, sum(values), len(values), worth, level=level)


def clustered_mean(
    name: str,
    values: Sequence[float],
    groups: Sequence[Hashable] | None = None,
    *,
    level: float = 0.95,
    unit: str = "",
) -> Metric:
    """A mean over items that come in groups, with Student's interval over the groups
    (:class:`~trueline.stats.clusters.Clusters`); none where the groups show no spread.

    Example:
        >>> print(clustered_mean("score", [1.0, 1.0, 2.0, 2.0, 3.0, 3.0], [0, 0, 1, 1, 2, 2]))
        2 [-0.4841, 4.484]
    """
    if not len(values):
        return Metric(name, None, n=0, level=level, unit=unit)
    clusters = Clusters.of(values, groups)
    low, high = clusters.interval(level) or (None, None)
    return Metric(name, clusters.mean, low, high, len(values), level, unit)


def mean_metric(
    name: str, values: Sequence[float], *, level: float = 0.95, unit: str = ""
) -> Metric:
    """The mean with Student's interval, ``mean -+ t_{n-1} s / sqrt(n)``.

    The interval is None below two values: one observation says nothing about its own spread.

    Args:
        name: the metric's name.
        values: finite numbers, one for each independent item.
        level: coverage of the interval.
        unit: handed on to the metric, e.g. ``"nats"``.

    Raises:
        UserError: a value is not finite.

    Example:
        >>> print(mean_metric("score", [1.0, 2.0, 3.0]))
        2 [-0.4841, 4.484]
    """
    check_level(level)
    numbers = finite(name, values)
    count = len(numbers)
    if count == 0:
        return Metric(name, None, n=0, level=level, unit=unit)
    mean = float(numbers.mean())
    if count == 1:
        return Metric(name, mean, n=1, level=level, unit=unit)
    from scipy.stats import t

    half = float(t.ppf(0.5 + level / 2, count - 1) * numbers.std(ddof=1) / math.sqrt(count))
    return Metric(name, mean, mean - half, mean + half, count, level, unit)


def scored(outcomes: Sequence[bool | None]) -> list[bool]:
    """The outcomes that were scored, as bools.

    Raises:
        UserError: an outcome is no truth value.

    Example:
        >>> scored([True, None, 0])
        [True, False]
    """
    kept = [outcome for outcome in outcomes if outcome is not None]
    for outcome in kept:
        if not isinstance(outcome, bool | np.bool_ | int) or outcome not in (0, 1):
            raise UserError(f"an outcome must be true, false or None (unscored), got {outcome!r}")
    return [bool(outcome) for outcome in kept]


def scored_both(
    before: Sequence[bool | None], after: Sequence[bool | None]
) -> list[tuple[int, bool, bool]]:
    """(place, before, after) of the items that both models were scored on.

    Raises:
        UserError: the lists differ in length, or an outcome is no truth value.

    Example:
        >>> scored_both([True, None, True], [False, True, True])
        [(0, True, False), (2, True, True)]
    """
    if len(before) != len(after):
        raise UserError(
            f"paired outcomes must be of the same items, got {len(before)} before and "
            f"{len(after)} after"
        )
    both = zip(before, after, strict=True)
    places = [i for i, (b, a) in enumerate(both) if b is not None and a is not None]
    first, second = scored([before[i] for i in places]), scored([after[i] for i in places])
    return list(zip(places, first, second, strict=True))
