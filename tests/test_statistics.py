"""Intervals and tests against closed forms, scipy, statsmodels and numbers known beforehand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import brentq, minimize_scalar
from scipy.stats import binom, binomtest, bootstrap, norm, t, ttest_1samp
from sklearn.metrics import cohen_kappa_score
from statsmodels.stats.contingency_tables import mcnemar as reference_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import NormalIndPower
from statsmodels.stats.proportion import power_proportions_2indep, proportion_confint

from trueline.errors import UserError
from trueline.results import Metric
from trueline.stats import (
    Calibration,
    Clusters,
    agreement,
    bootstrap_interval,
    clustered_mean,
    clustered_rate,
    corrected_difference,
    holm,
    inflation,
    mcnemar,
    mean_metric,
    needed_n,
    non_inferiority,
    paired_difference,
    paired_power,
    rate,
    rogan_gladen,
    score_test,
    swap_test,
    tango_interval,
    unpaired_power,
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
    metric = paired_difference(before, after)
    # 30 fixed, 5 broken of 100: -0.25; normal sd sqrt((0.35 - 0.0625) / 100) = 0.0536
    assert metric.value == pytest.approx(-0.25)
    assert (metric.low, metric.high) == pytest.approx((-0.25 - 0.105, -0.25 + 0.105), abs=0.012)
    assert metric.unit == "rate"
    mirrored = paired_difference(after, before)
    assert mirrored.value == pytest.approx(0.25)


def test_paired_difference_keeps_a_width_where_all_changed_alike() -> None:
    # all 100 fixed: the likeliest q under D is (1 - D) / 2 clipped by q + D >= 0, so q = -D, and
    # the score test keeps D with (100 + 100 D)^2 <= z^2 100 (-D)(1 + D), D <= -100 / (100 + z^2)
    metric = paired_difference([True] * 100, [False] * 100)
    assert (metric.value, metric.low) == (-1.0, -1.0)
    assert metric.high == pytest.approx(-(100 - 1.959964**2) / (100 + 1.959964**2), abs=1e-6)
    same = paired_difference([True, False] * 50, [True, False] * 50)
    assert same.value == 0.0
    assert same.low == pytest.approx(-same.high) != 0.0
    assert paired_difference([], []).value is None


# -- clusters ---------------------------------------------------------------------------------


def test_the_variance_and_its_freedom_are_bell_and_mccaffreys() -> None:
    """CR2 and its degrees of freedom from their definition, with the whole hat matrix."""
    rng = np.random.default_rng(2)
    group = np.repeat(np.arange(6), [1, 2, 3, 5, 9, 10])
    y, n = rng.normal(size=len(group)), len(group)
    rest, pieces = np.eye(n) - 1 / n, []
    for g in range(6):
        own = np.flatnonzero(group == g)
        values, vectors = np.linalg.eigh(rest[np.ix_(own, own)])
        root = vectors @ np.diag(values**-0.5) @ vectors.T
        pieces.append(rest[own].T @ root @ np.ones(len(own)) / n)  # u_g = pieces_g . y
    forms = np.array(pieces)
    cross = forms @ forms.T
    clusters = Clusters.of(y.tolist(), group.tolist())
    assert clusters.variance == pytest.approx(float(((forms @ y) ** 2).sum()))
    assert clusters.freedom == pytest.approx(np.trace(cross) ** 2 / (cross**2).sum())


def test_single_items_have_the_intervals_they_had() -> None:
    values = np.random.default_rng(0).normal(2, 3, 20).tolist()
    alone, plain = clustered_mean("score", values), mean_metric("score", values)
    assert (alone.low, alone.high) == pytest.approx((plain.low, plain.high))
    assert clustered_mean("score", [1.0, 1.0]).low is None
    assert clustered_mean("score", []).value is None
    assert inflation([0, 1, 1], [1, 2, 3]) == 1.0
    thirty = [True] * 30 + [False] * 70
    assert clustered_rate("asr", thirty, range(100)) == rate("asr", thirty)
    assert clustered_rate("asr", thirty, None) == rate("asr", thirty)
    assert clustered_rate("asr", [None], ["a"]).value is None


def test_copies_of_an_item_count_once() -> None:
    """Each item three times, as near-duplicates: the interval of the items themselves."""
    thrice = [o for o in [True] * 30 + [False] * 70 for _ in range(3)]
    groups = [i // 3 for i in range(300)]
    grouped = clustered_rate("asr", thrice, groups)
    assert grouped.n == 300
    assert (grouped.low, grouped.high) == pytest.approx(wilson(30, 100), abs=0.005)
    assert rate("asr", thrice).high < grouped.high - 0.03
    ratio = t.ppf(0.975, 99) / norm.ppf(0.975)
    assert inflation(thrice, groups) == pytest.approx(3 * ratio**2 * 100 / 99)
    none = clustered_rate("asr", [False] * 300, groups)
    assert (none.low, none.high) == pytest.approx(wilson(0, 100))
    assert wilson(0, 1)[1] == clustered_rate("asr", [False] * 300, [0] * 300).high


def test_alike_groups_do_not_pass_for_more_than_their_items() -> None:
    """Groups of one mean show no variance; the interval is then that of independent items."""
    flags, groups = [True, False] * 10, [i // 2 for i in range(20)]
    assert clustered_rate("x", flags, groups) == rate("x", flags)
    two = clustered_rate("x", [True] * 10 + [False] * 10, [0] * 10 + [1] * 10)
    assert (two.low, two.high) == pytest.approx((0, 1), abs=0.02)  # two groups know next to nothing


@pytest.mark.parametrize("p", [0.05, 0.3])
def test_twenty_clusters_cover_where_single_items_do_not(p: float) -> None:
    """One cell of the grid in studies/coverage.py."""
    rng, hits, naive, runs = np.random.default_rng(0), 0, 0, 600
    groups = np.repeat(np.arange(20), 5).tolist()
    for _ in range(runs):
        shared = rng.beta(p, 1 - p, 20)  # within a group outcomes correlate by 1/2
        drawn = (rng.random((20, 5)) < shared[:, None]).ravel().tolist()
        own, plain = clustered_rate("x", drawn, groups), rate("x", drawn)
        hits += own.low <= p <= own.high
        naive += plain.low <= p <= plain.high
    assert 0.93 < hits / runs < 0.98
    assert naive / runs < 0.85


def test_twenty_clusters_of_pairs_cover() -> None:
    rng, hits, runs = np.random.default_rng(0), 0, 300
    groups = np.repeat(np.arange(20), 5).tolist()
    for _ in range(runs):
        cells = rng.dirichlet([0.3, 0.1, 0.6], 20)  # fixed, broken, the rest: correlated by 1/2
        u = rng.random((20, 5))
        fixed, broken = u < cells[:, :1], u > 1 - cells[:, 1:2]
        found = paired_difference(fixed.ravel().tolist(), broken.ravel().tolist(), groups=groups)
        hits += found.low <= -0.2 <= found.high
    assert hits / runs > 0.93


def test_swap_test_counts_every_sign() -> None:
    differences = [2, -1, 3, 3, 0, 1]
    signs = np.array(np.meshgrid(*[[-1, 1]] * 5)).reshape(5, -1)
    sums = np.abs(np.array([2, -1, 3, 3, 1]) @ signs)
    assert swap_test(differences) == pytest.approx((sums >= 8).mean())
    assert swap_test([1] * 9 + [-1] * 2) == pytest.approx(binomtest(2, 11).pvalue)
    assert score_test([2.5, -1, 3, 3, 1], seed=0) == pytest.approx(
        (np.abs(np.array([2.5, -1, 3, 3, 1]) @ signs) >= 8.5).mean(), abs=0.02
    )


def test_groups_are_swapped_whole() -> None:
    before, after = [True] * 8, [False] * 8
    assert mcnemar(before, after).p_value == pytest.approx(2 / 2**8)
    by_two = mcnemar(before, after, groups=[0, 0, 1, 1, 2, 2, 3, 3])
    assert by_two.p_value == pytest.approx(2 / 2**4)
    assert (by_two.fixed, by_two.n) == (8, 8)
    with pytest.raises(UserError, match="one group an item"):
        mcnemar(before, after, groups=[1])


@pytest.mark.parametrize(("fixed", "broken"), [(0.02, 0.0), (0.2, 0.05), (0.02, 0.02)])
def test_paired_difference_covers(fixed: float, broken: float) -> None:
    rng, hits, runs = np.random.default_rng(0), 0, 300
    for _ in range(runs):
        u = rng.random(80)
        found = paired_difference((u < fixed).tolist(), (u > 1 - broken).tolist())
        hits += found.low <= broken - fixed <= found.high
    assert hits / runs > 0.92


# -- several questions, margins -----------------------------------------------------------------


def test_holm_equals_statsmodels() -> None:
    p = {str(i): float(v) for i, v in enumerate(np.random.default_rng(0).uniform(0, 0.1, 12))}
    expected = multipletests(list(p.values()), method="holm")[1]
    assert list(holm(p).values()) == pytest.approx(list(expected))
    assert holm({}) == {}
    with pytest.raises(UserError, match="between 0 and 1"):
        holm({"asr": 1.2})


def _score_by_search(fixed: int, broken: int, n: int, d: float) -> float:
    """Tango's statistic with the nuisance rate found by maximizing the likelihood."""

    def loss(q: float) -> float:
        chances = (q, q + d, 1 - 2 * q - d)
        counts = (fixed, broken, n - fixed - broken)
        return -sum(c * math.log(max(x, 1e-300)) for c, x in zip(counts, chances, strict=True) if c)

    low, high = max(0.0, -d), (1 - d) / 2
    q = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-12}).x
    return (broken - fixed - n * d) / math.sqrt(n * (2 * q + d * (1 - d)))


@pytest.mark.parametrize(("fixed", "broken", "n"), [(5, 2, 40), (1, 9, 50), (12, 12, 60)])
def test_tango_equals_a_search_over_the_likelihood(fixed: int, broken: int, n: int) -> None:
    low, high = tango_interval(fixed, broken, n)
    z = norm.ppf(0.975)
    value = (broken - fixed) / n
    found = [
        brentq(lambda d: _score_by_search(fixed, broken, n, d) - z, -0.9, value),
        brentq(lambda d: _score_by_search(fixed, broken, n, d) + z, value, 0.9),
    ]
    assert (low, high) == pytest.approx(found, abs=1e-5)
    assert tango_interval(broken, fixed, n) == pytest.approx((-high, -low))


def test_tango_by_hand_where_nothing_changed() -> None:
    # no change in n: q = 0 for D > 0, so D^2 n^2 <= z^2 n D (1 - D), D <= z^2 / (n + z^2)
    z2 = norm.ppf(0.975) ** 2
    assert tango_interval(0, 0, 50).high == pytest.approx(z2 / (50 + z2), abs=1e-9)
    with pytest.raises(UserError, match="fixed \\+ broken"):
        tango_interval(30, 30, 50)


def test_not_worse_is_rarely_said_of_a_model_that_is_worse_by_the_margin() -> None:
    rng, said, runs = np.random.default_rng(0), 0, 600
    for _ in range(runs):  # truly worse by exactly the margin of .05
        u = rng.random(150)
        before, after = (u < 0.02).tolist(), (u > 0.93).tolist()
        said += non_inferiority(before, after, margin=0.05, higher_is_worse=True).shown
    assert said / runs <= 0.045  # nominally .025; three standard errors above


def test_margins_point_the_right_way() -> None:
    before, after = [False] * 200, [True] * 60 + [False] * 140
    over = non_inferiority(before, after, margin=0.05, higher_is_worse=True)
    assert (over.shown, over.refuted) == (False, True)
    assert over.least < 0.3 < over.bound
    better = non_inferiority(before, after, margin=0.05, higher_is_worse=False)
    assert (better.shown, better.refuted) == (True, False)
    assert non_inferiority([], [], margin=0.05, higher_is_worse=True).shown is False
    copies = [i // 10 for i in range(200)]
    wide = non_inferiority(before, before, margin=0.05, higher_is_worse=True, groups=copies)
    assert not wide.shown  # twenty groups cannot show it, two hundred items could
    with pytest.raises(UserError, match="margin"):
        non_inferiority(before, after, margin=5, higher_is_worse=True)


# -- power --------------------------------------------------------------------------------------


def test_520_prompts_tell_five_percent_from_one() -> None:
    # the specification's figure, .96 (cut, not rounded: .9666)
    found = unpaired_power(0.05, 0.01, 520)
    assert found == pytest.approx(power_proportions_2indep(-0.04, 0.05, 520).power, abs=1e-7)
    assert math.floor(100 * found) == 96
    assert math.floor(100 * paired_power(0.05, 0.01, 520)) == 96


@pytest.mark.parametrize("correlation", [0.0, 0.3])
def test_paired_power_equals_simulation(correlation: float) -> None:
    before, after, n = 0.3, 0.2, 120
    both = before * after + correlation * math.sqrt(before * 0.7 * after * 0.8)
    cells = [both, before - both, after - both, 1 - before - after + both]
    drawn = np.random.default_rng(0).multinomial(n, cells, size=20_000)
    fixed, changed = drawn[:, 1], drawn[:, 1] + drawn[:, 2]
    significant = 2 * binom.cdf(np.minimum(fixed, changed - fixed), changed, 0.5) <= 0.05
    expected = (significant & (fixed > changed - fixed)).mean()
    found = paired_power(before, after, n, correlation=correlation)
    assert found == pytest.approx(expected, abs=0.01)


def test_power_under_no_effect_is_at_most_the_level() -> None:
    assert paired_power(0.2, 0.2, 200) <= 0.025  # in one direction
    assert paired_power(0.0, 0.0, 50) == 0.0
    assert paired_power(1.0, 0.0, 6) == 1.0
    assert paired_power(1.0, 0.0, 5) == 0.0  # 2 / 2^5 is above .05


def test_needed_n_is_the_first_that_holds() -> None:
    of = lambda n: paired_power(0.05, 0.01, n)  # noqa: E731
    n = needed_n(of, 0.8)
    assert of(n - 1) < 0.8 <= min(of(k) for k in range(n, n + 100))
    big = needed_n(lambda n: unpaired_power(0.2, 0.1, n), 0.9)
    assert abs(big - NormalIndPower().solve_power(0.2838, power=0.9, alpha=0.05)) < 8
    with pytest.raises(UserError, match="too small"):
        needed_n(lambda n: unpaired_power(0.05, 0.05, n), 0.8)


def test_power_says_what_is_wrong() -> None:
    with pytest.raises(UserError, match="correlation"):
        paired_power(0.05, 0.5, 100, correlation=0.9)
    with pytest.raises(UserError, match="rate between"):
        unpaired_power(5, 0.01, 100)


# -- judges -------------------------------------------------------------------------------------


def test_rogan_gladen_covers_the_true_rate_and_the_raw_one_does_not() -> None:
    rng, hits, naive, runs, truth = np.random.default_rng(0), 0, 0, 300, 0.3
    sensitivity, specificity = 0.8, 0.9
    for seed in range(runs):
        judge = Calibration(
            int(rng.binomial(120, sensitivity)), 120, int(rng.binomial(150, specificity)), 150
        )
        seen = truth * sensitivity + (1 - truth) * (1 - specificity)
        raw = rate("asr", int(rng.binomial(400, seen)), 400)
        found = rogan_gladen(raw, judge, seed=seed, draws=4000)
        hits += found.low <= truth <= found.high
        naive += raw.low <= truth <= raw.high
    assert 0.92 < hits / runs < 0.99
    assert naive / runs < 0.95


def test_rogan_gladen_by_hand() -> None:
    judge = Calibration(80, 100, 90, 100)
    raw = rate("asr", 31, 100)
    found = rogan_gladen(raw, judge, seed=0)
    assert found.value == pytest.approx((0.31 + 0.9 - 1) / 0.7)  # 0.3
    assert found.high - found.low > raw.high - raw.low
    assert rogan_gladen(rate("asr", 5, 100), judge, seed=0).value == 0.0
    perfect = Calibration(10**6, 10**6, 10**6, 10**6)
    same = rogan_gladen(raw, perfect, seed=0)
    assert (same.value, same.low, same.high) == pytest.approx(
        (raw.value, raw.low, raw.high), abs=0.01
    )
    change = Metric("asr", -0.35, -0.42, -0.28, 100, unit="rate")
    assert corrected_difference(change, judge, seed=0).value == pytest.approx(-0.5)
    exact = corrected_difference(change, perfect, seed=0)
    assert (exact.low, exact.high) == pytest.approx((-0.42, -0.28), abs=0.003)


def test_calibration_says_what_is_wrong() -> None:
    with pytest.raises(UserError, match="no better than chance"):
        rogan_gladen(rate("asr", 1, 2), Calibration(1, 10, 5, 10), seed=0)
    with pytest.raises(UserError, match="both kinds"):
        Calibration(0, 0, 5, 10)
    with pytest.raises(UserError, match="no negatives"):
        Calibration.from_dict({"true_positives": 1, "positives": 1, "true_negatives": 1})


def test_agreement_equals_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    one = rng.random(300) < 0.4
    two = np.where(rng.random(300) < 0.2, ~one, one)
    found = agreement([*one.tolist(), None], [*two.tolist(), True], seed=0)
    assert found.kappa.value == pytest.approx(cohen_kappa_score(one, two))
    assert found.same.value == pytest.approx((one == two).mean())
    assert found.both + found.only_first + found.only_second + found.neither == 300
    expected = bootstrap(
        (one, two), cohen_kappa_score, paired=True, vectorized=False, n_resamples=400,
        method="percentile", rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    assert (found.kappa.low, found.kappa.high) == pytest.approx(tuple(expected), abs=0.025)
    assert agreement([True] * 5, [True] * 5, seed=0).kappa.value is None
