"""Two judges on the same answers: how often they agree, beyond what chance would do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from trueline.results import Metric
from trueline.stats.proportions import rate, scored_both
from trueline.stats.resampling import check_level

Array: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, slots=True)
class Agreement:
    """What two judges said of the answers that both judged.

    Args:
        same: the share on which they agree.
        kappa: Cohen's kappa, 1 for perfect agreement and 0 for chance; None where both gave one
            and the same verdict throughout, which leaves nothing to agree on beyond chance.
        both, only_first, only_second, neither: who called it a success.
    """

    same: Metric
    kappa: Metric
    both: int
    only_first: int
    only_second: int
    neither: int


def agreement(
    first: Sequence[bool | None],
    second: Sequence[bool | None],
    *,
    seed: int,
    n_resamples: int = 2000,
    level: float = 0.95,
) -> Agreement:
    """Agreement of two judges, raw and beyond chance.

        kappa = (p_o - p_e) / (1 - p_e),  p_e = a b + (1-a) (1-b)

    with p_o the share of equal verdicts and a, b the judges' own rates of success.

    Args:
        first: one judge's outcomes, None where it did not say.
        second: the other's, of the same answers in the same order.
        seed: of the resamples behind kappa's interval (percentiles).
        n_resamples: how many.
        level: coverage of the intervals.

    Raises:
        UserError: the lists differ in length.

    Example:
        >>> a = agreement([True] * 5 + [False] * 15, [True] * 4 + [False] * 16, seed=0)
        >>> print(f"{a.same.value:.2f} {a.kappa.value:.2f}", a.only_first)
        0.95 0.86 1

    Source: Cohen (1960), Educational and Psychological Measurement 20, 37-46.
    """
    check_level(level)
    pairs = [(one, other) for _, one, other in scored_both(first, second)]
    order = ((True, True), (True, False), (False, True), (False, False))
    counts = [pairs.count(cell) for cell in order]
    n = len(pairs)
    same = rate("agreement", counts[0] + counts[3], n, level=level)
    value = float(_kappa(np.array([counts], dtype=float))[0]) if n else float("nan")
    if not np.isfinite(value):
        return Agreement(same, Metric("kappa", None, n=n, level=level), *counts)
    rng = np.random.default_rng(seed)
    resampled = _kappa(rng.multinomial(n, np.array(counts) / n, size=n_resamples).astype(float))
    known = resampled[np.isfinite(resampled)]
    tail = (1 - level) / 2
    low, high = (float(end) for end in np.quantile(known, [tail, 1 - tail]))
    if low == high:  # perfect agreement: every resample agrees, too
        return Agreement(same, Metric("kappa", value, n=n, level=level), *counts)
    return Agreement(same, Metric("kappa", value, low, high, n, level), *counts)


def _kappa(counts: Array) -> Array:
    """Kappa of each row of (both, only first, only second, neither); nan where it is undefined."""
    shares = counts / counts.sum(axis=1, keepdims=True)
    seen = shares[:, 0] + shares[:, 3]
    one, other = shares[:, 0] + shares[:, 1], shares[:, 0] + shares[:, 2]
    chance = one * other + (1 - one) * (1 - other)
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Array = (seen - chance) / (1 - chance)
    return found
