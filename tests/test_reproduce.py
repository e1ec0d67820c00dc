"""Claims are planned, run once, kept, resumed and judged; the verdicts follow one rule."""

import gc
import importlib.util
import json
import shutil
import subprocess
import sys
import time
import weakref
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import typer
from scipy.stats import ttest_1samp
from typer.testing import CliRunner

from trueline.cli.reproduce import reproduce as verb
from trueline.errors import UserError
from trueline.reproduce.claim import CLAIMS, PAPERS, Claim, Results
from trueline.reproduce.engine import perform
from trueline.reproduce.page import markdown, report_of, write_page
from trueline.reproduce.runs import EXPERIMENTS, Arm, Run, experiment
from trueline.reproduce.scales import FAST, FULL, TEST, Scale, on_recipe, plan
from trueline.reproduce.study import all_claims, choose, read_recipe, reproduce
from trueline.reproduce.verdict import Effect, decided, overall
from trueline.results import Metric
from trueline.stats import mean_metric
from trueline.training.memory import available

# --- fake experiments: numbers instead of models --------------------------------------------------

CALLS = []
STUDIES = Path(__file__).parents[1] / "studies"


@pytest.fixture(autouse=True)
def fakes():
    """A base and a measurement that stands on it; what they gave is counted."""
    CALLS.clear()
    all_claims()
    before = dict(EXPERIMENTS._entries)

    @experiment("fake base")
    def base(run, folder, parents):
        CALLS.append((run.experiment, run.seed))
        (folder / "base.txt").write_text(str(run.seed))
        return {"ten": 10.0}

    @experiment("fake", needs=lambda run: [Run("fake base", {}, run.seed)])
    def fake(run, folder, parents):
        CALLS.append((run.experiment, run.seed))
        assert (parents[0] / "base.txt").read_text() == str(run.seed)
        if run.options.get("fails") == run.seed:
            raise RuntimeError("no luck")
        value = run.options["add"] + run.options["wobble"] * run.seed
        return {"value": value, "unscored": None}

    yield
    EXPERIMENTS._entries.clear()
    EXPERIMENTS._entries.update(before)


HIGH, LOW = Arm("fake", {"add": 5.0}, "high"), Arm("fake", {"add": 1.0}, "low")
SCALE = Scale("fake", 3, {"fake": {"wobble": 0.25}}, {})


def made(name="fake-claim", arms=(HIGH, LOW), judge=None, **changes):
    facts = {
        "paper": "KLDO",
        "statement": "High is above low.",
        "measured": "Numbers.",
        "shows": {"value": ""},
        "caveat": "It is a fake.",
        "on_recipe": False,
        **changes,
    }
    judge = judge or (lambda results: [results.difference(HIGH, LOW, "value", "above")])
    return Claim(name, arms=arms, judge=judge, **facts)


# --- planning -------------------------------------------------------------------------------------


def test_claims_share_runs_and_each_comes_after_what_it_needs():
    one, two = made(), made("other", arms=(Arm("fake", {"add": 5.0}, "another title"),))
    runs = plan([one, two], SCALE, range(2))
    assert [(run.experiment, run.options.get("add"), run.seed) for run in runs] == [
        ("fake base", None, 0), ("fake", 5.0, 0), ("fake", 1.0, 0),
        ("fake base", None, 1), ("fake", 5.0, 1), ("fake", 1.0, 1),
    ]  # fmt: skip
    assert len({run.key for run in runs}) == 6


def test_a_key_tells_options_seeds_and_versions_apart():
    key = SCALE.run(HIGH, 0).key
    assert SCALE.run(Arm("fake", {"add": 5.0}, "new title"), 0).key == key
    assert SCALE.run(HIGH, 1).key != key
    assert Scale("other", 3, {"fake": {"wobble": 0.5}}, {}).run(HIGH, 0).key != key
    experiment("fake two", version=2)(lambda run, folder, parents: {})
    experiment("fake one", version=1)(lambda run, folder, parents: {})
    digests = {Run(name, {}, 0).key.split("-")[1] for name in ("fake one", "fake two")}
    assert len(digests) == 2


# --- doing ----------------------------------------------------------------------------------------


def test_what_is_done_is_kept_and_what_is_half_done_is_done_again(tmp_path):
    runs = plan([made()], SCALE, range(2))
    first = perform(runs, tmp_path, jobs=0)
    assert len(CALLS) == 6
    assert first.values[SCALE.run(HIGH, 1).key]["value"] == 5.25
    shutil.rmtree(tmp_path / SCALE.run(LOW, 1).key)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    half = tmp_path / f".{SCALE.run(LOW, 1).key}.part-{gone.pid}"  # what a kill leaves
    half.mkdir()
    again = perform(runs, tmp_path, jobs=0)
    assert again.kept == 5
    assert CALLS[6:] == [("fake", 1)]
    assert again.values == first.values
    assert not half.exists()


def test_a_damaged_result_is_measured_again(tmp_path):
    runs = plan([made()], SCALE, range(1))
    first = perform(runs, tmp_path, jobs=0)
    (tmp_path / runs[0].key / "result.json").write_text('{"values": {"ten": 10.0}, "sec')
    again = perform(runs, tmp_path, jobs=0)
    assert (again.kept, again.values) == (len(runs) - 1, first.values)


def test_a_failure_is_noted_and_the_others_go_on(tmp_path):
    bad = Arm("fake", {"add": 1.0, "fails": 1}, "low")
    claim = made(arms=(HIGH, bad), judge=lambda r: [r.difference(HIGH, bad, "value", "above")])
    study = reproduce([claim], SCALE, tmp_path, jobs=0)
    (outcome,) = study.outcomes
    assert list(outcome.seeds) == [0, 2]
    assert outcome.effects[0].metric.n == 2
    assert any("no luck" in note for note in outcome.notes)
    assert study.facts["runs"]["failed"] == 1
    assert "no luck" in (tmp_path / "runs" / f"{SCALE.run(bad, 1).key}.error.txt").read_text()
    assert not list((tmp_path / "runs").glob(".*"))


def test_what_needs_a_failed_run_fails_with_it(tmp_path):
    experiment("broken")(lambda run, folder, parents: 1 / 0)
    experiment("child", needs=lambda run: [Run("broken", {}, run.seed)])(lambda *_: {})
    done = perform([Run("broken", {}, 0), Run("child", {}, 0)], tmp_path, jobs=0)
    assert sorted(done.failed.values())[0].startswith("ZeroDivisionError")
    assert sorted(done.failed.values())[1] == "it needs broken, which failed"


def test_what_a_run_leaves_in_cycles_is_gone_before_the_next(tmp_path):
    """A trainer's model is held by a cycle; Python counts objects, not bytes, and lets it be."""
    seen = []

    class Cycle:
        def __init__(self):
            self.self = self

    @experiment("heavy")
    def heavy(run, folder, parents):
        seen.append((weakref.ref(Cycle()), [ref() is None for ref, _ in seen]))
        return {"value": 1.0}

    gc.disable()
    try:
        perform([Run("heavy", {}, seed) for seed in range(3)], tmp_path, jobs=0)
        assert [gone for _, gone in seen] == [[], [True], [True, True]]
        ref = weakref.ref(Cycle())
        available(torch.device("cpu"))  # nor does it count as memory that is taken
        assert ref() is None
    finally:
        gc.enable()


def test_a_spent_budget_begins_nothing_and_says_so(tmp_path):
    study = reproduce([made()], SCALE, tmp_path, jobs=0, budget=0.0)
    assert CALLS == []
    assert study.facts["runs"]["not begun"] == 9
    assert study.outcomes[0].verdict == "not measured"
    assert "0 of 3 seeds have all their runs." in study.outcomes[0].notes


@pytest.mark.slow
def test_killed_and_run_again_it_goes_on(tmp_path):
    """Real processes: killed after the first results, the second time only the rest is run; and
    the workers of a killed parent leave by themselves."""
    code = (
        "from pathlib import Path; from trueline.reproduce.study import choose, reproduce;"
        "from trueline.reproduce.scales import TEST\n"
        "if __name__ == '__main__': reproduce(choose(['minima-are-divergences']), TEST,"
        f" Path({str(tmp_path)!r}), seeds=400, first_seed=1000, jobs=2)"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    process = subprocess.Popen([sys.executable, str(script)], start_new_session=True)
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("runs/*/result.json"))) < 5:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    assert workers
    assert psutil.wait_procs(workers, timeout=30)[1] == []
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/result.json")}
    assert kept
    study = reproduce(
        choose(["minima-are-divergences"]), TEST, tmp_path, seeds=len(kept), first_seed=1000, jobs=2
    )
    assert study.outcomes[0].verdict == "supported"
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())


# --- judging --------------------------------------------------------------------------------------

CASES = [
    ((0.2, 0.1, 0.3), "above", {}, "supported"),
    ((0.2, -0.1, 0.5), "above", {}, "undecided"),
    ((-0.2, -0.3, -0.1), "above", {}, "not supported"),
    ((-0.2, -0.3, -0.1), "below", {}, "supported"),
    ((0.2, 0.1, 0.3), "below", {}, "not supported"),
    ((0.2, 0.0, 0.4), "above", {}, "undecided"),
    ((0.0, 0.0, 0.0), "below", {}, "undecided"),
    ((0.6, 0.55, 0.65), "above", {"against": 0.5}, "supported"),
    ((0.01, -0.02, 0.04), "equal", {"margin": 0.05}, "supported"),
    ((0.01, -0.04, 0.06), "equal", {"margin": 0.05}, "undecided"),
    ((0.2, 0.1, 0.3), "equal", {"margin": 0.05}, "not supported"),
    ((0.2, None, None), "above", {}, "undecided"),
    ((None, None, None), "above", {}, "not measured"),
    ((0.2, 0.2, 0.2), "above", {}, "undecided"),  # no spread over seeds is no interval
    ((0.2, 0.2, 0.2), "above", {"exact": True}, "supported"),
]


@pytest.mark.parametrize(("numbers", "expected", "more", "verdict"), CASES)
def test_one_rule_for_every_part(numbers, expected, more, verdict):
    assert Effect(Metric("effect", *numbers), expected, **more).verdict == verdict


def test_a_claim_is_supported_only_whole():
    yes, no, open_, none = (
        Effect(Metric("effect", *numbers), "above")
        for numbers in ((2, 1, 3), (-2, -3, -1), (2, -1, 3), (None,))
    )
    assert overall([yes, yes]) == "supported"
    assert overall([yes, open_]) == "undecided"
    assert overall([yes, open_, no]) == "not supported"
    assert overall([yes, none]) == "undecided"
    assert overall([none]) == overall([]) == "not measured"


def effect(values, expected="above", **more):
    return Effect(mean_metric("effect", values), expected, **more)


def test_the_ps_are_students_and_agree_with_the_interval():
    rng = np.random.default_rng(0)
    for n in (3, 5, 20):
        values = rng.normal(0.8, 1, n)
        p = ttest_1samp(values, 0.3, alternative="greater").pvalue
        held, failed = effect(values, against=0.3).chances
        assert (held, failed) == pytest.approx((min(2 * p, 1), min(2 - 2 * p, 1)))
        assert effect(values, "below", against=0.3).chances == pytest.approx((failed, held))
    for shift in np.linspace(-1.5, 1.5, 31):
        values = rng.normal(shift, 0.5, 8)
        for part in (effect(values), effect(values, "below"), effect(values, "equal", margin=0.6)):
            held, failed = part.chances
            word = "supported" if held < 0.05 else "not supported" if failed < 0.05 else "undecided"
            assert word == part.verdict
    two = [ttest_1samp(values, m, alternative=a).pvalue for m, a in ((-2, "greater"), (2, "less"))]
    assert effect(values, "equal", margin=2.0).chances[0] == pytest.approx(min(2 * max(two), 1))


def test_a_claim_needs_all_parts_and_one_refutes_it_at_a_price():
    strong, weak = effect([1.0, 1.1, 0.9, 1.2]), effect([1.0, 3.0, 1.5, 2.5])
    bad = effect([-1.0, -3.0, -1.5, -2.5])
    assert decided([strong, weak]) == ("supported", weak.chances[0])
    assert decided([strong, bad, strong]) == ("not supported", 3 * bad.chances[1])
    assert 0.05 / 3 < bad.chances[1] < 0.05  # by itself refuted, of three it may be chance
    assert (bad.verdict, overall([strong, bad, strong])) == ("not supported", "undecided")


def test_a_papers_claims_are_one_family_whichever_were_run(tmp_path):
    wild = Arm("fake", {"add": 1.0, "wobble": -1.0}, "wild")
    claim = made(arms=(HIGH, wild), judge=lambda r: [r.difference(HIGH, wild, "value", "above")])
    outcome = reproduce([claim], SCALE, tmp_path, jobs=0).outcomes[0]
    own = decided(outcome.effects)[1]
    family = [c for c in CLAIMS.values() if c.family == ("KLDO", 1) and not c.arithmetic]
    assert own < 0.05 <= outcome.p == pytest.approx((len(family) + 1) * own)
    assert (outcome.effects[0].verdict, outcome.verdict) == ("supported", "undecided")


def test_slopes_are_a_seeds_own_and_within_sets():
    """y falls by 3 a doubling of x within each set; the second set lies higher in both."""
    arms = {(s, i): Arm("fake", {"set": s, "i": i}) for s in (0, 1) for i in (0, 1, 2)}
    values = {
        arm.key: {
            seed: {"x": 2.0 ** (5 * s + i), "y": 40.0 * s + 7 * seed - 3 * i} for seed in (0, 1)
        }
        for (s, i), arm in arms.items()
    }
    sets = [[arm for (own, _), arm in arms.items() if own == s] for s in (0, 1)]
    found = Results((0, 1), values).slope(sets, "y", "x", "below", name="slope")
    assert (found.metric.value, found.metric.n) == (pytest.approx(-3), 2)
    one = Results((0, 1), values).slope([[*sets[0], *sets[1]]], "y", "x", "below", name="slope")
    assert one.metric.value > 0  # what the sets differ in would have been taken for the slope


def test_differences_are_paired_by_seed(tmp_path):
    """Seeds differ by 0.25 and the two arms by 4 (high) at every seed: paired, no spread is left;
    a third arm that wobbles by itself shows Student's interval of its own differences."""
    wild = Arm("fake", {"add": 1.0, "wobble": -1.0}, "wild")  # 1, 0, -1: differences 4, 5.25, 6.5
    claim = made(
        arms=(HIGH, LOW, wild),
        judge=lambda r: [
            r.difference(HIGH, LOW, "value", "equal", margin=4.1),
            r.difference(HIGH, wild, "value", "above"),
            r.difference(HIGH, LOW, "unscored", "above"),
        ],
    )
    same, spread, nothing = reproduce([claim], SCALE, tmp_path, jobs=0).outcomes[0].effects
    assert (same.metric.low, same.metric.value, same.metric.high) == (4.0, 4.0, 4.0)
    half = 4.302653 * 1.25 / 3**0.5  # t of 2 degrees, s = 1.25
    assert spread.metric.value == pytest.approx(5.25)
    assert spread.metric.low == pytest.approx(5.25 - half, abs=1e-5)
    assert nothing.verdict == "not measured"


@pytest.fixture
def nulls():
    """studies/nulls.py, which holds the whole simulation; here a corner of it."""
    spec = importlib.util.spec_from_file_location("nulls", STUDIES / "nulls.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_nothing_is_rarely_decided_and_what_is_planted_is_found(nulls):
    claims = [claim for claim in choose(["REAL"]) if nulls.random_parts(claim)]
    rng = np.random.default_rng(0)
    found = [nulls.judged(claims, 8, rng, confounded=1.0) for _ in range(120)]
    some = sum(any(one.verdict != "undecided" for one in family) for family in found)
    assert some / 120 <= 0.05 + 3 * (0.05 * 0.95 / 120) ** 0.5
    arm = claims[1].arms[0].key  # dissimilar pairs: all of their values are higher
    for size, verdict in ((4.0, "supported"), (-4.0, "not supported")):
        fewer, better = nulls.judged(claims, 8, rng, planted={arm: size})
        assert better.verdict == verdict
        assert fewer.verdict == {"supported": "not supported"}.get(verdict, "supported")


def test_the_kept_simulation_keeps_families_under_five_percent():
    kept = json.loads((STUDIES / "results" / "nulls.json").read_text("utf-8"))
    slack = 2 * (0.05 * 0.95 / kept["families"]) ** 0.5
    for table in kept["tables"].values():
        assert all(share <= 0.05 + slack for share in table.get("deciding", {}).values())


# --- the claims there are -------------------------------------------------------------------------


def test_every_paper_has_claims_and_every_claim_can_be_planned_and_listed():
    claims = all_claims()
    assert {claim.paper for claim in claims} == set(PAPERS)
    for claim in claims:
        assert plan([claim], FAST, range(1))
        assert claim.expected
        assert claim.statement.endswith(".")
        assert claim.caveat
    for scale in (FAST, FULL):
        used = {run.experiment for run in plan(claims, scale, range(1))}
        assert used == set(scale.minutes)


def test_the_cheap_claims_hold(tmp_path):
    names = ["minima-are-divergences", "jailbreak-bound"]
    study = reproduce(choose(names), FAST, tmp_path, seeds=8, jobs=0)
    assert [outcome.verdict for outcome in study.outcomes] == ["supported", "supported"]
    saved = json.loads((tmp_path / "results.json").read_text("utf-8"))
    assert [claim["verdict"] for claim in saved["claims"]] == ["supported", "supported"]
    page = write_page(study, tmp_path).read_text("utf-8")
    assert "Mathematics: a failure would be a mistake" in page
    text = markdown(study)
    assert "**minima-are-divergences**" in text
    assert saved["rule"] in text


def test_the_page_says_what_failed_and_why_it_might(tmp_path):
    claim = made(judge=lambda r: [r.difference(LOW, HIGH, "value", "above")])
    wild = Arm("fake", {"add": 9.0, "wobble": 1.0}, "wild")
    against = made("against", (LOW, wild), lambda r: [r.difference(LOW, wild, "value", "above")])
    report = report_of(reproduce([claim, against], SCALE, tmp_path, jobs=0))
    assert "1 not supported, 1 undecided" in report.summary
    assert "Not borne out here: High is above low." in report.summary
    assert "It is a fake." in str(report.sections)


def test_a_mistaken_claim_cannot_be_registered():
    from trueline.reproduce.claim import claim

    with pytest.raises(ValueError, match="no paper 'KLOD'"):
        claim("x", paper="KLOD", statement="", measured="", arms=(), shows={}, caveat="")
    assert "x" not in CLAIMS


# --- the command line -----------------------------------------------------------------------------

app = typer.Typer()
app.command()(verb)


def test_unknown_claims_get_the_nearest_name():
    with pytest.raises(UserError, match="did you mean 'jailbreak-bound'"):
        choose(["jailbrake-bound"])
    done = CliRunner().invoke(app, ["jailbrake-bound"])
    assert isinstance(done.exception, UserError)  # which main() turns into one line and exit 2
    assert done.stdout == ""


def test_papers_can_be_named_too():
    assert {claim.paper for claim in choose(["dil", "DSPO"])} == {"DIL", "DSPO"}


def test_json_is_one_document(tmp_path):
    given = ["jailbreak-bound", "--fast", "--seeds", "2", "--jobs", "0", "--json"]
    done = CliRunner().invoke(app, [*given, "--output", str(tmp_path)])
    assert done.exit_code == 0, done.output
    study = json.loads(done.stdout)
    assert study["claims"][0]["claim"] == "jailbreak-bound"
    assert study["claims"][0]["seeds"] == [0, 1]
    (arm,) = study["claims"][0]["arms"].values()
    assert arm["normal approximation minus exact, furthest"]["n"] == 2
    assert {"report.html", "results.json", "reproduction.md"} <= {
        p.name for p in tmp_path.iterdir()
    }
    listed = CliRunner().invoke(app, ["--list", "--json"])
    assert {row["claim"] for row in json.loads(listed.stdout)} == set(CLAIMS)


# --- recipes --------------------------------------------------------------------------------------


def test_a_recipe_replaces_model_and_data_and_keeps_the_objectives(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("model_name_or_path: here\ndataset_name: data.jsonl\nlearning_rate: 1.0e-5\n")
    recipe = read_recipe(path)
    claim = on_recipe(choose(["gamma-trades"])[0], recipe)
    gamma, dpo = claim.arms
    assert gamma.experiment == dpo.experiment == "recipe"
    assert gamma.options["training"] == {"learning_rate": 1e-5, "objective_options": {"gamma": 0.0}}
    assert dpo.options["training"] == {"learning_rate": 1e-5}
    assert "data" not in dpo.options
    with pytest.raises(UserError, match="a recipe cannot measure jailbreak-bound; it can measure"):
        reproduce(choose(["jailbreak-bound"]), FAST, tmp_path, recipe=recipe)
    path.write_text("model_name_or_path: here\ndataset_name: data.jsonl\nloss_type: dpo\n")
    with pytest.raises(UserError, match="loss_type would have no effect in a recipe"):
        read_recipe(path)
    path.write_text("dataset_name: data.jsonl")
    with pytest.raises(UserError, match="model_name_or_path and dataset_name"):
        read_recipe(path)


def test_a_recipe_runs_on_a_model_of_ones_own(tmp_path):
    from tiny import pair_rows, tiny_llama, tiny_tokenizer

    tiny_llama().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    lines = "".join(json.dumps(row) + "\n" for row in pair_rows())
    (tmp_path / "pairs.jsonl").write_text(lines, "utf-8")
    recipe = {
        "model_name_or_path": str(tmp_path / "model"),
        "dataset_name": str(tmp_path / "pairs.jsonl"),
        "skip_bad": False,
        "max_samples": 10,
        "training": {"max_steps": 2, "learning_rate": 1e-3, "max_length": 64, "use_cpu": True},
    }
    claims = choose(["gamma-trades", "easy-pairs-flip", "attack-success-order"])
    study = reproduce(claims, TEST, tmp_path / "out", seeds=2, jobs=0, recipe=recipe)
    found = {outcome.claim.name: outcome for outcome in study.outcomes}
    assert found["gamma-trades"].effects[1].metric.value is not None
    assert found["attack-success-order"].verdict == "not measured"
    assert "recipe cannot measure" in found["attack-success-order"].notes[0]


# --- one trained claim, at the smallest size ------------------------------------------------------


@pytest.mark.slow
def test_a_trained_claim_runs_through(tmp_path, monkeypatch):
    monkeypatch.setenv("TRUELINE_CACHE", str(tmp_path / "cache"))
    names = ["dissimilar-pairs-fewer-errors", "suffix-drags-both-down", "e-dpo-safer"]
    study = reproduce(choose(names), TEST, tmp_path / "out", jobs=2)
    assert not study.facts["runs"]["failed"]
    found = {outcome.claim.name: outcome for outcome in study.outcomes}
    suffix = found["suffix-drags-both-down"]
    words = [metrics[0].value for metrics in suffix.evidence.values()]
    assert words == sorted(words)
    assert suffix.effects[0].metric.value > 0  # the longer suffix, the more entangled
    errors = found["dissimilar-pairs-fewer-errors"].evidence
    assert all(0 < metrics[1].value < 0.5 for metrics in errors.values())
    assert Path(tmp_path / "cache" / "sandbox" / "test-0").is_dir()
