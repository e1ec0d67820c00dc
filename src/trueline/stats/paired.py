"""Two models, or two judges, on the same items: what changed, by how much, and whether
chance explains it; and of several primary questions at once, by Holm's step-down adjustment."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import numpy as np

from trueline.errors import UserError
from trueline.results import Metric
from trueline.stats.clusters import Clusters
from trueline.stats.margins import clustered_tango, of_pairs
from trueline.stats.proportions import rate, scored_both
from trueline.stats.resampling import check_level, finite


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


def mcnemar(
    before: Sequence[bool | None],
    after: Sequence[bool | None],
    *,
    groups: Sequence[Hashable] | None = None,
) -> McNemar:
    """McNemar's exact test: under no effect a changed item is as likely fixed as broken.

        p = 2 * P(X <= min(fixed, broken)),  X ~ Binomial(fixed + broken, 1/2), at most 1

    Items that did not change say nothing about the direction and drop out. With ``groups`` the
    models change places for a whole group at once (:func:`swap_test`), so near-duplicates do not
    count as evidence more than once; with groups of one item that is the same test.

    Args:
        before: outcomes of the first model, True where the counted failure happened.
        after: outcomes of the second model on the same items, in the same order.
        groups: one label for each item; equal labels fare alike.

    Raises:
        UserError: the lists differ in length.

    Example:
        >>> found = mcnemar([True] * 6 + [False], [False] * 6 + [False])
        >>> found.fixed, found.broken, found.n, round(found.p_value, 5)
        (6, 0, 7, 0.03125)
        >>> mcnemar([True] * 6, [False] * 6, groups=[0, 0, 1, 1, 2, 2]).p_value
        0.25

    Source: McNemar (1947), Psychometrika 12, 153-157.
    """
    pairs = scored_both(before, after)
    fixed = sum(b and not a for _, b, a in pairs)
    broken = sum(a and not b for _, b, a in pairs)
    changes = [float(a) - float(b) for _, b, a in pairs]
    clusters = Clusters.of(changes, of_pairs(groups, len(before), pairs))
    return McNemar(fixed, broken, len(pairs), swap_test(clusters.totals.astype(int).tolist()))


def swap_test(differences: Sequence[int]) -> float:
    """Exact two-sided p-value of a sum of whole numbers under random signs.

        p = P(|sum_g s_g d_g| >= |sum_g d_g|),  s_g = +1 or -1 with chance 1/2 each

    Under no effect the two models' labels may be swapped within any group, which turns the
    sign of the group's difference. Differences of 1 and -1 give McNemar's exact test.

    Args:
        differences: one whole number a group; zeros say nothing and drop out.

    Example:
        >>> swap_test([-2, -2, -2])
        0.25
        >>> swap_test([0, 0])
        1.0
    """
    from scipy.stats import binom

    sizes, counts = np.unique(np.abs([d for d in differences if d]), return_counts=True)
    chances = np.ones(1)
    for size, count in zip(sizes.astype(int), counts, strict=True):
        # the sum over groups of this size is size * (2 X - count), X ~ Binomial(count, 1/2)
        steps = np.zeros(2 * size * count + 1)
        steps[:: 2 * size] = binom.pmf(np.arange(count + 1), count, 0.5)
        chances = np.convolve(chances, steps)
    reach = len(chances) // 2
    sums = np.arange(-reach, reach + 1)
    return min(float(chances[np.abs(sums) >= abs(sum(differences))].sum()), 1.0)


def score_test(differences: Sequence[float], *, seed: int, n_resamples: int = 10_000) -> float:
    """:func:`swap_test` for scores that are no whole numbers: random signs, not all of them.

    Args:
        differences: one number a group, after minus before.
        seed: of the drawn signs.
        n_resamples: how many draws; the observed one counts as one more.

    Returns:
        A two-sided p-value, at least ``1 / (n_resamples + 1)``.
    """
    values = finite("score test", differences)
    rng = np.random.default_rng(seed)
    signs = rng.integers(0, 2, size=(n_resamples, len(values)), dtype=np.int8) * 2 - 1
    as_large = np.abs(signs @ values) >= abs(values.sum()) - 1e-12 * np.abs(values).sum()
    return float((as_large.sum() + 1) / (n_resamples + 1))


def paired_difference(
    before: Sequence[bool | None],
    after: Sequence[bool | None],
    *,
    name: str = "difference",
    level: float = 0.95,
    groups: Sequence[Hashable] | None = None,
) -> Metric:
    """The rate after minus the rate before, on the same items, with a paired interval.

    The interval is Tango's (:func:`~trueline.stats.margins.tango_interval`): it rests on the items
    that changed, so the correlation between the two models stays, and it keeps a width even where
    nothing changed. With ``groups`` its counts are those of as many independent items as the
    groups are worth (:func:`~trueline.stats.clusters.inflation`).

    Args:
        before: outcomes of the first model, True where the counted event happened.
        after: outcomes of the second model on the same items, in the same order.
        name: the metric's name.
        level: coverage of the interval.
        groups: one label for each item; equal labels fare alike.

    Returns:
        A metric of unit ``"rate"`` between -1 and 1; negative where the event became rarer.

    Example:
        >>> print(paired_difference([True] * 100, [False] * 100))
        -100.0% [-100.0%, -92.6%]

    Source: Tango (1998), Statistics in Medicine 17, 891-908.
    """
    pairs = scored_both(before, after)
    if not pairs:
        check_level(level)
        return Metric(name, None, n=0, level=level, unit="rate")
    found = clustered_tango(pairs, of_pairs(groups, len(before), pairs), level)
    fixed, broken = (sum(b is way and a is not way for _, b, a in pairs) for way in (True, False))
    value = (broken - fixed) / len(pairs)
    return Metric(name, value, found.low, found.high, len(pairs), level, "rate")


Name = TypeVar("Name")


def holm(p_values: Mapping[Name, float]) -> dict[Name, float]:
    """Adjusted p-values that keep the chance of any false claim in the family at the level.

        sorted p_(1) <= ... <= p_(m):  adjusted p_(i) = max_{j <= i} min((m - j + 1) p_(j), 1)

    The family is declared before looking: the primary measures, times the runs compared.

    Args:
        p_values: one for each question.

    Returns:
        The adjusted p-values by the same names, in the same order.

    Raises:
        UserError: a value is outside [0, 1].

    Example:
        >>> holm({"asr": 0.01, "over_refusal": 0.04, "utility": 0.03})
        {'asr': 0.03, 'over_refusal': 0.06, 'utility': 0.06}

    Source: Holm (1979), Scandinavian Journal of Statistics 6, 65-70.
    """
    for name, p in p_values.items():
        if not 0.0 <= p <= 1.0:
            raise UserError(f"a p-value must be between 0 and 1, got {p} for {name!r}")
    adjusted, highest = {}, 0.0
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        highest = max(highest, min((len(p_values) - rank) * p, 1.0))
        adjusted[name] = highest
    return {name: adjusted[name] for name in p_values}


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
