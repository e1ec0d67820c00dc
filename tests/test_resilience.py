"""Resilience: the published table is the first golden case; the rest against statsmodels."""

import itertools

import numpy as np
import pandas
import pytest
import statsmodels.formula.api as smf
from scipy.stats import pearsonr, spearmanr

from trueline.errors import UserError
from trueline.evaluation.comparison import JudgedRun, points_from_runs, read_points
from trueline.evaluation.harness.log import Judgement
from trueline.evaluation.resilience import Point, critical_r, permutation_p, resilience
from trueline.results import Finding, Metric

# Bhattacharyya distance / attack success under GCG in percent: DPO, KTO, BCO, KLDO
PUBLISHED = {
    "Llama-3.2-1B": [(2.91, 40), (3.71, 72), (6.50, 42), (5.75, 31)],
    "Llama-7B SFT": [(3.67, 70), (4.06, 38), (3.43, 8), (4.42, 6)],
    "Gemma-2-2B": [(1.20, 25), (1.76, 12), (2.91, 6), (10.13, 10)],
    "Mistral-7B": [(2.02, 94), (5.01, 85), (8.94, 32), (5.98, 31)],
    "Qwen2.5-1.5B": [(4.10, 48), (4.25, 54), (11.77, 43), (9.19, 29)],
}
METHODS = ("DPO", "KTO", "BCO", "KLDO")


@pytest.fixture(scope="module")
def points():
    return [
        Point(model, method, distance, percent / 100)
        for model, row in PUBLISHED.items()
        for method, (distance, percent) in zip(METHODS, row, strict=True)
    ]


@pytest.fixture(scope="module")
def found(points):
    return resilience(points)


def test_the_papers_regression(points):
    found = resilience(points, preset="paper")
    assert found["slope"].value == pytest.approx(-0.84, abs=0.005)
    assert found["r_squared"].value == pytest.approx(0.235, abs=0.0005)
    assert found["p_value"].value == pytest.approx(0.030, abs=0.0005)


def test_permutation_within_models_on_the_published_table(found):
    # all 24^5 arrangements counted: no seed decides it
    assert found["permutation_p"].value == pytest.approx(0.0256, abs=0.0001)
    assert "p = 0.026 by permutation" in found.summary


def test_fixed_effects_equal_statsmodels(points, found):
    table = pandas.DataFrame(
        [(p.model, np.log2(p.separation), p.asr) for p in points], columns=["model", "x", "y"]
    )
    fit = smf.ols("y ~ x + C(model)", table).fit()
    effect = found["asr_per_doubling"]
    assert effect.value == pytest.approx(fit.params["x"])
    assert (effect.low, effect.high) == pytest.approx(tuple(fit.conf_int().loc["x"]))
    assert found["fixed_effects_p"].value == pytest.approx(fit.pvalues["x"])
    assert "open" in found.summary  # the two tests fall on different sides of .05 here


def test_spearman_is_over_points_and_resamples_whole_models(points, found):
    rank = found["spearman"]
    expected = spearmanr([p.separation for p in points], [p.asr for p in points]).statistic
    assert rank.value == pytest.approx(expected)
    assert rank.low < rank.value < rank.high
    one = [Point("base", str(i), i + 1.0, 1 - i / 10) for i in range(6)]
    assert resilience(one)["spearman"].value == pytest.approx(-1)


@pytest.mark.parametrize(("n", "r"), [(5, 0.88), (8, 0.71), (10, 0.63), (20, 0.44)])
def test_critical_correlations(n, r):
    assert critical_r(n) == pytest.approx(r, abs=0.005)
    x = np.arange(n, dtype=float)
    noise = np.random.default_rng(0).normal(size=n)
    for weight in np.linspace(0, 3, 40):  # either side of it the test says what it should
        found = pearsonr(x, weight * x / n + noise)
        assert (found.pvalue < 0.05) == (abs(found.statistic) > critical_r(n))


def test_permutations_drawn_agree_with_all_of_them(monkeypatch):
    rng = np.random.default_rng(0)
    x, y = [rng.normal(size=4) for _ in range(3)], [rng.normal(size=4) for _ in range(3)]
    y[0] = y[0] + 2 * x[0]
    exact = permutation_p(x, y, seed=0)
    center = lambda a: a - a.mean()  # noqa: E731
    observed = sum(center(a) @ center(b) for a, b in zip(x, y, strict=True))
    each = [[center(a) @ np.array(o) for o in itertools.permutations(center(b))]
            for a, b in zip(x, y, strict=True)]  # fmt: skip
    sums = np.array([sum(combination) for combination in itertools.product(*each)])
    assert exact == pytest.approx((np.abs(sums) >= abs(observed) - 1e-9).mean())
    monkeypatch.setattr("trueline.evaluation.resilience.EXACT", 1)
    assert permutation_p(x, y, seed=0, n_resamples=40_000) == pytest.approx(exact, abs=0.01)


def test_under_no_effect_one_in_twenty_is_significant():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(300):
        x, y = rng.normal(size=(3, 4)), rng.normal(size=(3, 4))
        hits += permutation_p(list(x), list(y), seed=0) <= 0.05
    assert hits / 300 < 0.09


def test_floors_are_flagged():
    low = [Point("a", str(i), i + 1.0, a) for i, a in enumerate((0.0, 0.01, 0.02, 0.5))]
    found = resilience(low)
    assert found["at_floor_or_ceiling"].value == 0.75
    assert "can hardly move" in found.advice
    middle = [Point("a", str(i), i + 1.0, 0.3 + i / 10) for i in range(4)]
    assert "can hardly move" not in resilience(middle).advice


def test_figure_draws_each_base_model_in_order_of_separation(found):
    [panel] = found.figures["curves"]["panels"]
    assert [line["name"] for line in panel["lines"]] == list(PUBLISHED)
    line = panel["lines"][2]
    assert line["x"] == pytest.approx([1.20, 1.76, 2.91, 10.13])
    assert line["y"] == pytest.approx([0.25, 0.12, 0.06, 0.10])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([("a", "x", 1, 0.5)], "at least 3"),
        ([("a", "x", 1, 0.5), ("a", "x", 2, 0.4), ("a", "z", 3, 0.4)], "twice"),
        ([("a", "x", 1, 0.5), ("b", "y", 2, 0.4), ("c", "z", 3, 0.3)], "compare within"),
        ([("a", "x", 1, 40)], "40% as 0.4"),
        ([("a", "x", 0, 0.4)], "above 0"),
    ],
)
def test_what_cannot_be_analyzed_is_said(given, message):
    with pytest.raises(UserError, match=message):
        resilience([Point(*values) for values in given])


def _run(name, asked, base="base", texts=("apart one", "apart two")):
    row = Judgement(id="1", benchmark="b", attack="direct", judge="j", prompt=asked,
                    answer="a", success=True, harmful=True)  # fmt: skip
    scatter = {"x": [0, 1], "y": [0, 1], "harmful": [True, False], "text": list(texts)}
    apart = Finding("separation", "", [Metric("bhattacharyya_distance", 2.0)],
                    figures={"scatter": scatter})  # fmt: skip
    return JudgedRun(name, (row,), findings=[apart], base_model=base)


def test_points_come_from_runs_and_shared_prompts_are_said():
    runs = [_run("one", "how?"), _run("two", "apart   one"), _run("three", "how?", texts=())]
    found = points_from_runs(runs, {"one": 0.5, "two": 0.4, "three": 0.3})
    assert found.points[0] == Point("base", "one", 2.0, 0.5)
    assert [note.split(":")[0] for note in found.notes] == ["two", "three"]
    assert "1 of the 2 prompts" in found.notes[0]
    assert "cannot be checked" in found.notes[1]
    long = "word " * 40
    cut = _run("four", long, texts=(long[:89] + "…",))
    assert "1 of the 1 prompts" in points_from_runs([cut], {"four": 0.5}).notes[0]


def test_runs_without_separation_or_base_are_refused():
    bare = JudgedRun("bare", _run("x", "how?").judgements, base_model="base")
    with pytest.raises(UserError, match="no finding 'separation'"):
        points_from_runs([bare], {"bare": 0.5})
    runs = [_run("a", "?", "one"), _run("b", "?", "two"), _run("c", "?", None)]
    with pytest.raises(UserError, match="c does not say"):
        points_from_runs(runs, dict.fromkeys("abc", 0.5))


def test_tables_of_points(tmp_path, points):
    table = tmp_path / "points.csv"
    lines = [f"{p.model},{p.method},{p.separation},{p.asr}" for p in points]
    table.write_text("\n".join(["model,method,separation,asr", *lines]))
    assert read_points(table) == points
    table.write_text("model,method,separation,asr\na,b,far,0.5\n")
    with pytest.raises(UserError, match=r"points.csv:2: separation and asr must be numbers"):
        read_points(table)
    table.write_text("model,method,distance,asr\na,b,1,0.5\n")
    with pytest.raises(UserError, match=r"points.csv:2: no separation"):
        read_points(table)
