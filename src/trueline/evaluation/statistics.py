"""Rates, means and differences with the uncertainty that belongs to them.

One convention throughout: an outcome is True where the event that is counted happened. For a
safety rate the event is the failure (an attack that succeeded, a benign prompt that was refused),
so a True that turns False is *fixed* and a False that turns True is *broken*. None means
unscored: it is left out of ``n``, never counted as False.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trueline.diagnostics.resampling import (
    Interval,
    bootstrap_interval,
    check_level,
    finite,
)
from trueline.errors import UserError
from trueline.results import Metric

__all__ = [
    "Interval",
    "McNemar",
    "bootstrap_interval",
    "mcnemar",
    "mean_metric",
    "paired_difference",
    "rate",
    "wilson",
]


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
    from scipy.stats import binomtest

    found = binomtest(int(successes), int(n)).proportion_ci(level, method="wilson")
    return Interval(float(found.low), float(found.high))


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
        successes, scored = int(outcomes), n
    else:
        if n is not None:
            raise UserError(f"{name}: a list of outcomes counts itself; leave n out")
        kept = _scored(outcomes)
        successes, scored = sum(kept), len(kept)
    found = wilson(successes, scored, level)
    if found is None:
        return Metric(name, None, n=0, level=level, unit="rate")
    return Metric(name, successes / scored, found.low, found.high, scored, level, "rate")


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


@dataclass(frozen=True, slots=True)
class McNemar:
    """Two models on the same items: what changed, and whether chance explains the balance.

    ``fixed`` counts True before and False after, ``broken`` the other way; ``p_value`` is
    two-sided and exact; ``n`` is the number of items scored both times.
    """

    fixed: int
    broken: int
    n: int
    p_value: float


def mcnemar(before: Sequence[bool | None], after: Sequence[bool | None]) -> McNemar:
    """McNemar's exact test: under no effect a changed item is as likely fixed as broken.

        p = 2 * P(X <= min(fixed, broken)),  X ~ Binomial(fixed + broken, 1/2), at most 1

    Items that did not change say nothing about the direction and drop out.

    Args:
        before: outcomes of the first model, True where the counted failure happened.
        after: outcomes of the second model on the same items, in the same order.

    Raises:
        UserError: the lists differ in length.

    Example:
        >>> mcnemar([True] * 6 + [False], [False] * 6 + [False])
        McNemar(fixed=6, broken=0, n=7, p_value=0.03125)

    Source: McNemar (1947), Psychometrika 12, 153-157.
    """
    pairs = _pairs(before, after)
    fixed = sum(b and not a for b, a in pairs)
    broken = sum(a and not b for b, a in pairs)
    if fixed + broken == 0:
        return McNemar(0, 0, len(pairs), 1.0)
    from scipy.stats import binomtest

    p_value = float(binomtest(fixed, fixed + broken, 0.5).pvalue)
    return McNemar(fixed, broken, len(pairs), p_value)


def paired_difference(
    before: Sequence[bool | None],
    after: Sequence[bool | None],
    *,
    seed: int,
    name: str = "difference",
    n_resamples: int = 2000,
    level: float = 0.95,
) -> Metric:
    """The rate after minus the rate before, on the same items, with a paired interval.

    The items are resampled, so the correlation between the two models stays. Where all items
    changed alike (all fixed, or none changed) resampling shows no spread; the interval is then
    Bonett and Price's adjusted Wald interval, which adds one fixed and one broken item:

        d -+ z sqrt((p_f + p_b - d^2) / (n + 2)),  p = (count + 1) / (n + 2),  d = p_b - p_f

    Args:
        before: outcomes of the first model, True where the counted event happened.
        after: outcomes of the second model on the same items, in the same order.
        seed: the resamples' seed.
        name: the metric's name.
        n_resamples: how many resamples.
        level: coverage of the interval.

    Returns:
        A metric of unit ``"rate"`` between -1 and 1; negative where the event became rarer.

    Example:
        >>> print(paired_difference([True] * 100, [False] * 100, seed=0))
        -100.0% [-100.0%, -94.2%]

    Source: Bonett and Price (2012), Journal of Educational and Behavioral Statistics 37, 479-488.
    """
    check_level(level)
    pairs = _pairs(before, after)
    if not pairs:
        return Metric(name, None, n=0, level=level, unit="rate")
    change = [float(a) - float(b) for b, a in pairs]
    found = bootstrap_interval(change, seed=seed, n_resamples=n_resamples, level=level)
    if found is None:
        found = _bonett_price(change.count(-1.0), change.count(1.0), len(change), level)
    return Metric(name, float(np.mean(change)), found.low, found.high, len(pairs), level, "rate")


def _bonett_price(fixed: int, broken: int, n: int, level: float) -> Interval:
    from scipy.stats import norm

    p_fixed, p_broken = (fixed + 1) / (n + 2), (broken + 1) / (n + 2)
    center = p_broken - p_fixed
    half = float(norm.ppf(0.5 + level / 2)) * math.sqrt((p_fixed + p_broken - center**2) / (n + 2))
    return Interval(max(center - half, -1.0), min(center + half, 1.0))


def _pairs(before: Sequence[bool | None], after: Sequence[bool | None]) -> list[tuple[bool, bool]]:
    """The items that both models were scored on."""
    if len(before) != len(after):
        raise UserError(
            f"paired outcomes must be of the same items, got {len(before)} before and "
            f"{len(after)} after"
        )
    both = [(b, a) for b, a in zip(before, after, strict=True) if b is not None and a is not None]
    return list(zip(_scored([b for b, _ in both]), _scored([a for _, a in both]), strict=True))


def _scored(outcomes: Sequence[bool | None]) -> list[bool]:
    kept = [outcome for outcome in outcomes if outcome is not None]
    for outcome in kept:
        if not isinstance(outcome, bool | np.bool_ | int) or outcome not in (0, 1):
            raise UserError(f"an outcome must be true, false or None (unscored), got {outcome!r}")
    return [bool(outcome) for outcome in kept]
