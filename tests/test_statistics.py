"""Intervals and tests against closed forms, scipy, statsmodels and numbers known beforehand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import bootstrap, t, ttest_1samp
from statsmodels.stats.contingency_tables import mcnemar as reference_mcnemar
from statsmodels.stats.proportion import proportion_confint

from trueline.errors import UserError
from trueline.evaluation.statistics import (
    bootstrap_interval,
    mcnemar,
    mean_metric,
    paired_difference,
    rate,
    wilson,
)

# -- rates ------------------------------------------------------------------------------------


def test_zero_of_520_still_has_an_upper_bound() -> None:
    # z = 1.959964: z^2 / (n + z^2) = 3.841459 / 523.841459 = 0.0073332
    low, high = wilson(0, 520)
    assert low == 0.0
    assert high == pytest.approx(0.0073332, abs=1e-7)


@pytest.mark.parametrize(("k", "n"), [(0, 1), (1, 1), (3, 10), (50, 100), (519, 520)])
@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
def test_wilson_equals_statsmodels(k: int, n: int, level: float) -> None:
    assert wilson(k, n, level) == pytest.approx(
        proportion_confint(k, n, alpha=1 - level, method="wilson"), abs=1e-12
    )


def test_wilson_mirrors() -> None:
    low, high = wilson(3, 17)
    assert wilson(14, 17) == pytest.approx((1 - high, 1 - low))


@pytest.mark.parametrize(("k", "n"), [(-1, 5), (6, 5), (0, -1)])
def test_wilson_refuses_impossible_counts(k: int, n: int) -> None:
    with pytest.raises(UserError, match="successes <= n"):
        wilson(k, n)


@pytest.mark.parametrize("level", [0.0, 1.0, 95])
def test_level_is_a_probability(level: float) -> None:
    with pytest.raises(UserError, match="level"):
        wilson(1, 2, level)


def test_rate_counts_none_as_unscored() -> None:
    metric = rate("asr", [True, False, None, False, None])
    assert (metric.value, metric.n, metric.unit) == (pytest.approx(1 / 3), 3, "rate")
    assert metric == rate("asr", 1, 3)


@pytest.mark.parametrize("metric", [rate("asr", []), rate("asr", [None]), rate("asr", 0, 0)])
def test_nothing_scored_is_none_and_never_zero(metric) -> None:
    assert (metric.value, metric.low, metric.high, metric.n) == (None, None, None, 0)
    assert str(metric) == "unscored"


def test_rate_says_what_is_wrong() -> None:
    with pytest.raises(UserError, match="needs n"):
        rate("asr", 3)
    with pytest.raises(UserError, match="leave n out"):
        rate("asr", [True], 1)
    with pytest.raises(UserError, match="'no'"):
        rate("asr", ["no"])  # type: ignore[list-item]


def test_rate_takes_numpy_outcomes() -> None:
    assert rate("asr", np.array([True, False])).value == 0.5


# -- means ------------------------------------------------------------------------------------


def test_mean_equals_scipy() -> None:
    values = np.random.default_rng(0).normal(2, 3, 20)
    metric = mean_metric("score", values)
    expected = ttest_1samp(values, 0).confidence_interval(0.95)
    assert (metric.low, metric.high) == pytest.approx((expected.low, expected.high))


def test_mean_by_hand() -> None:
    # mean 2, s = 1, n = 3: half = t_{2, .975} / sqrt 3 = 4.30265 / 1.73205 = 2.48414
    metric = mean_metric("score", [1, 2, 3])
    assert (
        metric.high - 2 == pytest.approx(t.ppf(0.975, 2) / math.sqrt(3)) == pytest.approx(2.48414)
    )


def test_mean_of_few() -> None:
    assert mean_metric("score", []).value is None
    one = mean_metric("score", [4.0])
    assert (one.value, one.low, one.high, one.n) == (4.0, None, None, 1)
    with pytest.raises(UserError, match="1 of the values"):
        mean_metric("score", [1.0, math.nan])


# -- bootstrap --------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "name"), [("bca", "BCa"), ("percentile", "percentile")])
def test_bootstrap_equals_scipy(method, name: str) -> None:
    values = np.random.default_rng(1).exponential(size=40)
    expected = bootstrap(
        (values,), np.median, n_resamples=500, method=name, rng=np.random.default_rng(7)
    ).confidence_interval
    found = bootstrap_interval(values, statistic=np.median, seed=7, n_resamples=500, method=method)
    assert found == pytest.approx((expected.low, expected.high))


def test_bootstrap_is_seeded_and_covers() -> None:
    rng = np.random.default_rng(3)
    hits = 0
    for seed in range(200):
        values = rng.normal(5, 2, 40)
        low, high = bootstrap_interval(values, seed=seed, n_resamples=300)
        hits += low < 5 < high
    assert 176 <= hits <= 198  # 95% of 200, less the bootstrap's known small-sample shortfall
    assert bootstrap_interval([1, 2, 4], seed=0) == bootstrap_interval([1, 2, 4], seed=0)


def test_bootstrap_of_a_constant_knows_nothing() -> None:
    assert bootstrap_interval([1.0] * 30, seed=0) is None
    assert bootstrap_interval([1.0], seed=0) is None
    assert bootstrap_interval([], seed=0) is None


def test_bootstrap_falls_back_to_percentiles_where_bca_is_undefined() -> None:
    # the maximum of values with a repeated maximum: no single removal moves it
    values = [1, 2, 3, 9, 9]
    found = bootstrap_interval(values, statistic=np.max, seed=0)
    assert found == bootstrap_interval(values, statistic=np.max, seed=0, method="percentile")


def test_paired_bootstrap_keeps_the_pairs() -> None:
    a = np.arange(20.0)
    narrow = bootstrap_interval(a, a + np.tile([0.9, 1.1], 10), statistic=_gap, seed=0, paired=True)
    wide = bootstrap_interval(a, a + np.tile([0.9, 1.1], 10), statistic=_gap, seed=0)
    assert narrow.high - narrow.low < 0.1 < 3 < wide.high - wide.low
    with pytest.raises(UserError, match="differ in length"):
        bootstrap_interval([1, 2], [1, 2, 3], statistic=_gap, seed=0, paired=True)


def _gap(a, b) -> float:
    return float(np.mean(b) - np.mean(a))


# -- before and after -------------------------------------------------------------------------


@pytest.mark.parametrize(("both", "fixed", "broken", "neither"), [(5, 9, 1, 30), (0, 3, 3, 0)])
def test_mcnemar_equals_statsmodels(both: int, fixed: int, broken: int, neither: int) -> None:
    before = [True] * (both + fixed) + [False] * (broken + neither)
    after = [True] * both + [False] * fixed + [True] * broken + [False] * neither
    found = mcnemar(before, after)
    expected = reference_mcnemar([[both, fixed], [broken, neither]], exact=True)
    assert (found.fixed, found.broken, found.n) == (fixed, broken, len(before))
    assert found.p_value == pytest.approx(expected.pvalue)


def test_mcnemar_by_hand() -> None:
    # 8 fixed, 0 broken: 2 * (1/2)^8 = 1/128
    assert mcnemar([True] * 8, [False] * 8).p_value == pytest.approx(1 / 128)
    assert mcnemar([True, False], [True, False]).p_value == 1.0
    assert mcnemar([True, None, True], [False, True, None]).n == 1


def test_pairs_must_match() -> None:
    with pytest.raises(UserError, match="2 before and 1 after"):
        mcnemar([True, False], [True])


def test_paired_difference_by_hand() -> None:
    before, after = [True] * 40 + [False] * 60, [False] * 30 + [True] * 15 + [False] * 55
    metric = paired_difference(before, after, seed=0)
    # 30 fixed, 5 broken of 100: -0.25; normal sd sqrt((0.35 - 0.0625) / 100) = 0.0536
    assert metric.value == pytest.approx(-0.25)
    assert (metric.low, metric.high) == pytest.approx((-0.25 - 0.105, -0.25 + 0.105), abs=0.012)
    assert metric.unit == "rate"
    mirrored = paired_difference(after, before, seed=0)
    assert mirrored.value == pytest.approx(0.25)


def test_paired_difference_keeps_a_width_where_all_changed_alike() -> None:
    # n = 100, all fixed: p_f = 101/102, p_b = 1/102, d = -100/102, se = sqrt((1 - d^2)/102)
    d = -100 / 102
    half = 1.959964 * math.sqrt((1 - d * d) / 102)
    metric = paired_difference([True] * 100, [False] * 100, seed=0)
    assert (metric.value, metric.low) == (-1.0, -1.0)
    assert metric.high == pytest.approx(d + half, abs=1e-6)
    same = paired_difference([True, False] * 50, [True, False] * 50, seed=0)
    assert same.value == 0.0
    assert same.low == pytest.approx(-same.high) != 0.0
    assert paired_difference([], [], seed=0).value is None
