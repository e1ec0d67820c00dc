"""Intervals by resampling: the one bootstrap that diagnostics and evaluation share."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from trueline.errors import UserError
from trueline.results import Metric

Array: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]
Statistic: TypeAlias = Callable[..., Any]

BATCH = 2_000_000
"""Resampled values in memory at a time: all resamples at once would grow with the data squared."""


class Interval(NamedTuple):
    """The two ends of an interval, in the unit of the value it belongs to."""

    low: float
    high: float


def bootstrap_interval(
    *samples: Sequence[float],
    statistic: Statistic = np.mean,
    seed: int,
    n_resamples: int = 2000,
    level: float = 0.95,
    paired: bool = False,
    method: Literal["bca", "percentile"] = "bca",
) -> Interval | None:
    """An interval for any statistic, from resampling the items it was computed on.

    BCa shifts the percentiles by the resamples' bias and by the statistic's acceleration. Where
    that correction is undefined (the jackknife does not vary) the plain percentiles are used.

    Args:
        samples: one or more lists of values; each is resampled by itself, or all by the same
            items with ``paired=True``.
        statistic: a function of that many 1-D arrays that returns one number.
        seed: the resamples' seed; the same seed gives the same interval.
        n_resamples: how many resamples.
        level: coverage, between 0 and 1.
        method: ``"bca"`` or ``"percentile"``.

    Returns:
        The interval, or None where every resample gives the same number or a sample has fewer
        than two items: resampling then knows nothing of the spread.

    Raises:
        UserError: a value is not finite, or paired samples differ in length.

    Example:
        >>> low, high = bootstrap_interval([1, 2, 3, 4, 5, 6], seed=0)
        >>> 1.5 < low < 3.5 < high < 5.5
        True

    Source: Efron (1987), Better bootstrap confidence intervals, JASA 82, 171-185.
    """
    check_level(level)
    arrays = tuple(finite("bootstrap", sample) for sample in samples)
    if paired and len({len(array) for array in arrays}) > 1:
        raise UserError(f"paired samples differ in length: {[len(array) for array in arrays]}")
    if not arrays or min(len(array) for array in arrays) < 2:
        return None
    for name in ("BCa", "percentile") if method == "bca" else ("percentile",):
        found = _resample(arrays, statistic, seed, n_resamples, level, paired, name)
        if np.ptp(found.bootstrap_distribution) == 0.0:
            return None
        low, high = (float(end) for end in found.confidence_interval)
        if math.isfinite(low) and math.isfinite(high):
            return Interval(low, high)
    return None


def _resample(
    arrays: tuple[Array, ...],
    statistic: Statistic,
    seed: int,
    n_resamples: int,
    level: float,
    paired: bool,
    method: str,
) -> Any:
    from scipy.stats import bootstrap

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # scipy warns where BCa is undefined; the caller looks
        return bootstrap(
            arrays,
            statistic,
            n_resamples=n_resamples,
            confidence_level=level,
            paired=paired,
            vectorized=False,
            method=method,
            batch=max(1, BATCH // max(len(array) for array in arrays)),
            rng=np.random.default_rng(seed),
        )


def share(name: str, count: int, n: int) -> Metric:
    """``count / n`` with its 95% Wilson interval, which stays within 0..1 at any count.

    Example:
        >>> str(share("chosen_longer", 50, 100))
        '50.0% [40.4%, 59.6%]'
    """
    if n == 0:
        return Metric(name, None, n=0, unit="rate")
    z, p = 1.959964, count / n
    center = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = (center - half if count else 0.0), (center + half if count < n else 1.0)
    return Metric(name, p, low, high, n, unit="rate")


def quantile(name: str, values: Any, q: float, *, unit: str = "") -> Metric:
    """A quantile with its exact interval from order statistics.

    The number of values below the true quantile is binomial, which tells between which two of the
    sorted values it lies. The interval is None where there are too few values for that.

    Example:
        >>> found = quantile("median", range(1, 100), 0.5)
        >>> found.value, found.low, found.high
        (50.0, 40.0, 60.0)

    Source: Conover (1999), Practical Nonparametric Statistics, section 3.2.
    """
    numbers = finite(name, values)
    if not len(numbers):
        return Metric(name, None, n=0, unit=unit)
    from scipy.stats import quantile_test

    found = quantile_test(numbers, p=q).confidence_interval(0.95)
    known = math.isfinite(found.low) and math.isfinite(found.high)
    low, high = (float(found.low), float(found.high)) if known else (None, None)
    return Metric(name, float(np.quantile(numbers, q)), low, high, len(numbers), unit=unit)


def rate_difference(first: Metric, second: Metric) -> Metric:
    """first - second of two independent rates, with Newcombe's hybrid score interval.

    Example:
        >>> print(rate_difference(share("a", 56, 70), share("b", 48, 80)))
        20.0% [5.2%, 33.4%]

    Source: Newcombe (1998), Statistics in Medicine 17, 873-890, method 10.
    """
    ends = (first.value, first.low, first.high, second.value, second.low, second.high)
    name = f"{first.name} minus {second.name}"
    if any(end is None for end in ends):
        return Metric(name, None, n=0, unit="rate")
    p, p_low, p_high, q, q_low, q_high = (float(end) for end in ends if end is not None)
    below, above = math.hypot(p - p_low, q_high - q), math.hypot(p_high - p, q - q_low)
    count = (first.n or 0) + (second.n or 0)
    return Metric(name, p - q, p - q - below, p - q + above, count, unit="rate")


def finite(name: str, values: Sequence[float]) -> Array:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise UserError(f"{name}: expected a list of numbers, got shape {array.shape}")
    if not np.isfinite(array).all():
        raise UserError(f"{name}: {int((~np.isfinite(array)).sum())} of the values are not finite")
    return array


def check_level(level: float) -> None:
    if not 0.0 < level < 1.0:
        raise UserError(f"level must be between 0 and 1, such as 0.95, got {level}")
