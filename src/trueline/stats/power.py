"""Power, stated beforehand: how likely a real difference shows, and how many prompts that takes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from trueline.errors import UserError

Array: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]


def paired_power(
    before: float, after: float, n: int, *, correlation: float = 0.0, alpha: float = 0.05
) -> float:
    """The chance that McNemar's exact test finds a true change of a rate, on the same prompts.

        p_f = before - p_11,  p_b = after - p_11
        p_11 = before * after + correlation * sqrt(before (1-before) after (1-after))
        power = sum_m P(Binomial(n, p_f + p_b) = m) P(reject | m, p_f / (p_f + p_b))

    Args:
        before: the true rate of the first model.
        after: the true rate of the second.
        n: prompts that both are scored on.
        correlation: of the two models' outcomes over prompts (phi); 0 where they are
            independent. The same prompts tend to fail with both, so 0 is on the safe side.
        alpha: the test's two-sided level.

    Returns:
        The power, between 0 and 1: the probability of rejecting, in the true direction.

    Raises:
        UserError: a rate outside [0, 1], or a correlation that two such rates cannot have.

    Example:
        >>> round(paired_power(0.05, 0.01, 520), 3)
        0.969
    """
    _check(before, after, n, alpha)
    both = before * after
    both += correlation * math.sqrt(before * (1 - before) * after * (1 - after))
    fixed, broken = before - both, after - both
    if min(fixed, broken, both, 1 - fixed - broken - both) < -1e-12 or not -1 <= correlation <= 1:
        raise UserError(f"rates of {before} and {after} cannot have a correlation of {correlation}")
    fixed, broken = max(fixed, 0.0), max(broken, 0.0)
    if fixed + broken == 0.0:
        return 0.0
    from scipy.stats import binom

    changed = np.arange(n + 1)
    weight = binom.pmf(changed, n, min(fixed + broken, 1.0))
    rare = min(fixed, broken) / (fixed + broken)
    return float((weight * binom.cdf(_critical(changed, alpha), changed, rare)).sum())


def _critical(changed: Any, alpha: float) -> Array:
    """For each number of changed items the largest count of the rarer kind that still rejects."""
    from scipy.stats import binom

    guess = binom.ppf(alpha / 2, changed, 0.5)
    found: Array = np.where(binom.cdf(guess, changed, 0.5) <= alpha / 2, guess, guess - 1)
    return found


def unpaired_power(before: float, after: float, n: int, *, alpha: float = 0.05) -> float:
    """The chance that two models' rates differ significantly on ``n`` different prompts each.

        power = Phi((|d| - z sqrt(2 p (1-p) / n)) / sqrt((before (1-before) + after (1-after)) / n))

    with d the difference and p the mean of the rates (a normal approximation).

    Args:
        before: the true rate of the first model.
        after: the true rate of the second.
        n: prompts for each model.
        alpha: the test's two-sided level.

    Example:
        >>> round(unpaired_power(0.05, 0.01, 520), 3)
        0.967

    Source: Fleiss, Levin and Paik (2003), Statistical Methods for Rates and Proportions, 4.
    """
    _check(before, after, n, alpha)
    from scipy.stats import norm

    mean = (before + after) / 2
    null = math.sqrt(2 * mean * (1 - mean) / n)
    spread = math.sqrt((before * (1 - before) + after * (1 - after)) / n)
    gap = abs(before - after) - float(norm.ppf(1 - alpha / 2)) * null
    if spread == 0.0:
        return 1.0 if gap > 0 else 0.0
    return float(norm.cdf(gap / spread))


def needed_n(power: Callable[[int], float], target: float = 0.8, *, most: int = 200_000) -> int:
    """The smallest number of prompts from which on the power stays at ``target`` or above.

    An exact test's power falls a little here and there as n grows, so the first n that reaches
    the target is not enough: the next fifth must reach it, too.

    Args:
        power: of one number of prompts, such as ``lambda n: paired_power(0.05, 0.01, n)``.
        target: the power wanted.
        most: where to give up.

    Raises:
        UserError: not even ``most`` prompts reach the target.

    Example:
        >>> needed_n(lambda n: unpaired_power(0.05, 0.01, n), 0.8)
        285
    """
    if not 0.0 < target < 1.0:
        raise UserError(f"a power is between 0 and 1, such as 0.8, got {target}")
    high = 2
    while power(high) < target:
        high *= 2
        if high > most:
            raise UserError(
                f"more than {most:,} prompts are needed for a power of {target}; the difference is "
                "too small to show"
            )
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle) >= target else (middle, high)
    last_miss = max((n for n in _around(high) if power(n) < target), default=high - 1)
    return last_miss + 1


def _around(n: int) -> range:
    """Where an exact test's power may still fall below what it reached at ``n``."""
    return range(max(n - n // 5, 1), n + n // 5 + 3)


def _check(before: float, after: float, n: int, alpha: float) -> None:
    for name, value in (("before", before), ("after", after)):
        if not 0.0 <= value <= 1.0:
            raise UserError(f"{name} must be a rate between 0 and 1, got {value}")
    if n < 1:
        raise UserError(f"n must be at least 1, got {n}")
    if not 0.0 < alpha < 1.0:
        raise UserError(f"alpha must be between 0 and 1, such as 0.05, got {alpha}")
