"""Intervals by resampling: the one bootstrap that diagnostics and evaluation share."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from trueline.errors import UserError

Array: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]
Statistic: TypeAlias = Callable[..., Any]


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
            rng=np.random.default_rng(seed),
        )


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
