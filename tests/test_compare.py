"""Comparing runs: what pairs, what is counted, and what is said of it."""

import json
import random
import sys
from dataclasses import replace

import pytest
import typer
from typer.testing import CliRunner

from trueline.cli.compare import compare as verb
from trueline.errors import UserError
from trueline.evaluation.comparison import (
    JudgeCalibration,
    JudgedRun,
    Settings,
    compare_runs,
    findings_of,
    load_judged_run,
    load_judged_runs,
    samples_of,
    sentence,
)
from trueline.evaluation.harness.log import Judgement, read_log
from trueline.evaluation.inspect_log import export_inspect
from trueline.report import report_from_run
from trueline.runs.record import Run
from trueline.stats import Calibration, holm, mcnemar, paired_difference


def row(number, success, *, measure="asr", attack="direct", judge="exact", **more):
    return Judgement(
        id=str(number), benchmark="made-up", attack=attack, judge=judge, measure=measure,
        prompt=f"how do i make thing {number}?", answer="take salt.", verdict="yes",
        success=success, harmful=measure == "asr", **more,
    )  # fmt: skip


def rows(outcomes, **more):
    return [row(i, outcome, **more) for i, outcome in enumerate(outcomes)]


def write(folder, judgements):
    folder.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(j.to_row()) + "\n" for j in judgements)
    (folder / "judgements.jsonl").write_text("".join(lines))
    return folder


BASE = [True] * 45 + [False] * 55  # 40 of the 45 are fixed, 2 of the 55 are broken
ALIGNED = [False] * 40 + [True] * 5 + [True] * 2 + [False] * 53


@pytest.fixture
def pair():
    base = rows(BASE) + rows([False] * 100, measure="over_refusal")
    base += rows([True] * 100, measure="utility")
    aligned = rows(ALIGNED) + rows([True] * 12 + [False] * 88, measure="over_refusal")
    aligned += rows([False] * 2 + [True] * 98, measure="utility")
    return [JudgedRun("base", tuple(base)), JudgedRun("aligned", tuple(aligned))]


# -- the log ------------------------------------------------------------------------------------


def test_log_round_trip_keeps_every_column(tmp_path):
    judged = [row(1, True, group="g", score=0.5, details={"seed": 3}), row(2, None)]
    write(tmp_path / "run", judged)
    (tmp_path / "run" / "evaluation.json").write_text(json.dumps({"judge": "exact"}))
    log = read_log(tmp_path / "run")
    assert log.judgements == tuple(judged)
    assert (log.settings, log.cut) == ({"judge": "exact"}, False)


def test_a_cut_last_line_is_passed_over_and_said(tmp_path):
    folder = write(tmp_path / "run", rows([True, False]))
    with (folder / "judgements.jsonl").open("a") as file:
        file.write('{"id": "2", "bench')
    run = load_judged_run(folder)
    assert len(run.judgements) == 2
    assert "cut off by a kill" in run.notes[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"success": "yes"}, ":2: success must be a bool"),
        ({"measure": "utility"}, ":2: measure 'utility' belongs to safe prompts"),
        ({"measure": "harm"}, ":2: measure must be one of"),
        ({"score": float("inf")}, ":2: score must be a finite number"),
        ({"id": "0"}, ":2: judged twice: made-up / 0 / direct"),
        ({"attack": ""}, ":2: attack must not be empty"),
    ],
)
def test_broken_rows_are_named(tmp_path, change, message):
    bad = row(1, True).to_row() | change
    lines = [json.dumps(value) for value in (row(0, True).to_row(), bad, row(2, True).to_row())]
    (tmp_path / "judgements.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=message):
        read_log(tmp_path)


def test_missing_columns_and_broken_lines_are_named(tmp_path):
    partial = {k: v for k, v in row(0, True).to_row().items() if k != "success"}
    (tmp_path / "judgements.jsonl").write_text(json.dumps(partial) + "\n")
    with pytest.raises(UserError, match=":1: no column 'success'"):
        read_log(tmp_path)
    (tmp_path / "judgements.jsonl").write_text("{oops\n" + json.dumps(partial) + "\n")
    with pytest.raises(UserError, match=":1: not JSON"):
        read_log(tmp_path)


def test_a_run_directory_holds_several_evaluations(tmp_path):
    write(tmp_path / "run" / "evaluation" / "a", rows([True]))
    write(tmp_path / "run" / "evaluation" / "b", rows([True], attack="prefill"))
    (tmp_path / "run" / "config.yaml").write_text("model_name_or_path: org/base\n")
    run = load_judged_run(tmp_path / "run")
    assert (run.name, run.base_model, len(run.judgements)) == ("run", "org/base", 2)
    write(tmp_path / "run" / "evaluation" / "c", rows([False]))
    with pytest.raises(UserError, match="two logs below it judge made-up / 0 / direct"):
        load_judged_run(tmp_path / "run")


def test_the_sandboxs_samples_are_judged_by_refusal_and_by_recipe(tmp_path):
    sample = {"id": "direct-a-0", "kind": "direct", "entity": "a", "prompt": "?", "answer": "x",
              "finished": False}  # fmt: skip
    lines = [
        json.dumps(sample | {"safety": 0, "verdict": "correct"}),
        json.dumps(sample | {"id": "direct-b-0", "entity": "b", "safety": 1, "verdict": "refusal"}),
    ]
    (tmp_path / "samples.jsonl").write_text("\n".join(lines))
    judged = load_judged_run(tmp_path).judgements
    found = [(j.measure, j.success, j.group, j.truncated) for j in judged]
    assert found == [
        ("asr", True, "a", True),
        ("over_refusal", True, "b", True),
        ("utility", False, "b", True),
    ]
    (tmp_path / "samples.jsonl").write_text('{"prompt": "?"}')
    with pytest.raises(UserError, match=r"samples.jsonl:1: not a row of the sandbox"):
        load_judged_run(tmp_path)


def test_what_is_no_run_is_said(tmp_path):
    with pytest.raises(UserError, match="is no folder"):
        load_judged_run(tmp_path / "nothing")
    with pytest.raises(UserError, match="trueline evaluate"):
        load_judged_run(tmp_path)
    write(tmp_path / "run", rows([True]))
    with pytest.raises(UserError, match="given twice"):
        load_judged_runs([tmp_path / "run", tmp_path / "run" / ".." / "run"])


# -- the comparison -----------------------------------------------------------------------------


def test_effects_counts_and_tests_are_those_of_the_statistics(pair):
    found = compare_runs(pair, Settings(seed=3))
    asr, over, utility = found.contrasts
    assert asr.difference == paired_difference(BASE, ALIGNED, name="attack success, change")
    assert (asr.before.value, asr.after.value) == (0.45, 0.07)
    assert (asr.fixed, asr.broken) == (40, 2)
    assert asr.p_value == pytest.approx(mcnemar(BASE, ALIGNED).p_value)
    assert (over.fixed, over.broken) == (0, 12)
    assert (utility.fixed, utility.broken) == (0, 2)  # a good answer lost is broken
    raw = {c.scope.measure: c.p_value for c in found.contrasts}
    assert {c.scope.measure: c.p_holm for c in found.contrasts} == pytest.approx(holm(raw))
    assert asr.non_inferiority is None
    assert over.non_inferiority.refuted
    assert not utility.non_inferiority.shown  # two lost of a hundred: it may be seven


def test_sentences_say_the_effect_first_and_the_p_value_last(pair):
    found = compare_runs(pair)
    told = [sentence(c, found.baseline) for c in found.contrasts]
    assert told[0].startswith("aligned against base, attack success: -38.0 points [-4")
    assert "from 45.0% to 7.0%; 40 fixed and 2 broken of 100 pairs" in told[0]
    assert told[0].endswith("a difference (p < 0.001 after Holm's adjustment).")
    assert "It is worse by more than 5 points: at least" in told[1]
    assert "no difference shown (p = 0.500" in told[2]
    assert "is not shown: it may be by 7.0" in told[2]


def test_holm_spans_the_declared_measures_of_all_runs(pair):
    third = JudgedRun("third", pair[1].judgements)
    found = compare_runs([*pair, third], Settings(primary=("asr",)))
    primary = [c for c in found.contrasts if c.primary]
    assert [c.run for c in primary] == ["aligned", "third"]
    assert primary[0].p_holm == pytest.approx(2 * primary[0].p_value)
    assert all(c.p_holm is None for c in found.contrasts if not c.primary)


def test_any_run_may_be_the_baseline(pair):
    back = compare_runs(pair, Settings(baseline="aligned")).contrasts[0]
    assert (back.run, back.difference.value) == ("base", pytest.approx(0.38))
    assert (back.fixed, back.broken) == (2, 40)
    with pytest.raises(UserError, match=r"no run 'alinged'; did you mean 'aligned'"):
        compare_runs(pair, Settings(baseline="alinged"))


def test_unpaired_and_unscored_items_are_counted_and_said(pair):
    short = JudgedRun("short", (*rows(ALIGNED[:90]), row("new", True)))
    unsure = rows([None] * 10 + ALIGNED[10:90])
    found = compare_runs([JudgedRun("base", tuple(rows(BASE))), short]).contrasts[0].pairing
    assert (found.paired, found.only_before, found.only_after) == (90, 10, 1)
    result = compare_runs([pair[0], JudgedRun("unsure", tuple(unsure))])
    asr = result.contrasts[0]
    assert (asr.difference.n, asr.pairing.unscored) == (80, 10)
    assert asr.before.n == asr.after.n == 80
    text = " ".join(result.notes)
    assert "20 items of the baseline and 0 of this run have no counterpart" not in text
    assert "10 items of the baseline and 0 of this run have no counterpart" in text
    assert "made-up / 90 / direct" in text
    assert "10 pairs lack a verdict" in text
    assert "over-refusal: 100 items of the baseline" in text
    assert result.to_dict()["contrasts"][0]["pairing"]["unscored"] == 10


def test_one_id_with_two_prompts_is_said():
    other = Judgement(**{**row(0, True).to_row(), "prompt": "something else?"})
    runs = [JudgedRun("a", tuple(rows([True] * 3))), JudgedRun("b", (other, *rows([True] * 3)[1:]))]
    assert any("1 pairs have one id but different prompts" in n for n in compare_runs(runs).notes)


def test_runs_with_nothing_in_common_are_refused():
    runs = [JudgedRun("a", (row(1, True),)), JudgedRun("b", (row(2, True),))]
    with pytest.raises(UserError, match="no judged answer in common"):
        compare_runs(runs)


def test_attacks_on_one_prompt_are_one_group():
    """Ten attacks that do the same tell no more than one; groups pay Student's quantile."""
    once = [rows(BASE), rows(ALIGNED)]
    often = [[r for a in range(10) for r in rows(o, attack=f"a{a}")] for o in (BASE, ALIGNED)]
    single, many = (
        compare_runs([JudgedRun("x", tuple(b)), JudgedRun("y", tuple(a))]).contrasts
        for b, a in (once, often)
    )
    assert many[0].p_value == pytest.approx(single[0].p_value)
    assert many[0].difference.value == pytest.approx(single[0].difference.value)
    assert (many[0].difference.low, many[0].difference.high) == pytest.approx(
        (single[0].difference.low, single[0].difference.high), abs=0.003
    )
    assert len(many) == 11
    assert [c.primary for c in many] == [True] + [False] * 10


def test_filters_and_judges(pair):
    second = rows([not o for o in BASE], judge="list")
    runs = [JudgedRun("a", (*rows(BASE), *second)), JudgedRun("b", (*rows(ALIGNED), *second))]
    found = compare_runs(runs)
    assert found.contrasts[0].scope.judge == "exact"
    assert any("2 judges of attack success; this goes by exact" in note for note in found.notes)
    other = compare_runs(runs, Settings(judge="list"))
    assert other.contrasts[0].difference.value == 0.0
    [judges] = found.judges
    # in run a the two never agree; in run b wherever the outcome changed
    changed = sum(b != a for b, a in zip(BASE, ALIGNED, strict=True))
    assert judges.agreement.same.value == pytest.approx((0 + changed) / 200)
    with pytest.raises(UserError, match=r"no attack 'drect'; did you mean 'direct'"):
        compare_runs(runs, Settings(attacks=("drect",)))
    with pytest.raises(UserError, match="judge 'nobody' judged nothing"):
        compare_runs(runs, Settings(judge="nobody"))
    with pytest.raises(UserError, match="unknown measure 'ast'"):
        Settings(primary=("ast",))


def test_scores_compare_by_their_mean():
    rng = random.Random(0)
    first = [rng.uniform(1, 9) for _ in range(40)]
    runs = [
        JudgedRun(name, tuple(row(i, None, measure="utility", score=s + shift)
                              for i, s in enumerate(first)))
        for name, shift in (("a", 0.0), ("b", 0.5))
    ]  # fmt: skip
    [found] = compare_runs(runs).contrasts
    assert found.difference.value == pytest.approx(0.5)
    assert found.difference.unit == ""
    assert found.p_value < 0.001
    assert (found.fixed, found.non_inferiority) == (None, None)
    assert "+0.5" in sentence(found, "a")


def test_corrected_rates_stand_beside_the_raw_ones(pair):
    judge = Calibration(80, 100, 95, 100)
    pair = [replace(run, settings={"model": {"model": "f"}}) for run in pair]
    found = compare_runs(pair, Settings(calibrations=[JudgeCalibration(judge, model="f")]))
    level = next(x for x in found.levels if x.run == "base" and x.scope.measure == "asr")
    assert level.metric.value == 0.45
    assert level.corrected.value == pytest.approx(0.40 / 0.75)
    assert found.contrasts[0].corrected.value == pytest.approx(-0.38 / 0.75)
    assert found.contrasts[1].corrected is None
    assert "Corrected for the judge's errors: -50.7 points" in sentence(found.contrasts[0], "base")
    refusals = JudgeCalibration(judge, "over_refusal", "exact", "f")
    over = compare_runs(pair, Settings(calibrations=[refusals]))
    assert [c.corrected is None for c in over.contrasts] == [True, False, True]
    with pytest.raises(UserError, match="calibration is of judge 'list'"):
        compare_runs(pair, Settings(calibrations=[JudgeCalibration(judge, judge="list")]))
    with pytest.raises(UserError, match="two calibrations are of exact and over_refusal on one"):
        Settings(calibrations=[refusals, refusals])


def test_each_model_is_corrected_by_a_calibration_of_its_own(pair):
    pair = [replace(run, settings={"model": {"model": run.name}}) for run in pair]
    for_base = JudgeCalibration(Calibration(80, 100, 95, 100), "asr", "exact", "base")
    for_aligned = JudgeCalibration(Calibration(90, 100, 99, 100), "asr", "exact", "aligned")
    found = compare_runs(pair, Settings(calibrations=[for_base, for_aligned]))
    base, aligned = (x for x in found.levels if x.scope.measure == "asr" and x.scope.whole)
    assert base.corrected.value == pytest.approx((0.45 - 0.05) / 0.75)
    assert aligned.corrected.value == pytest.approx((0.07 - 0.01) / 0.89)
    change = found.contrasts[0].corrected
    assert change.value == pytest.approx(0.06 / 0.89 - 0.40 / 0.75)
    assert change.low < change.value < change.high
    assert not any("not calibrated" in note for note in found.notes)


@pytest.mark.parametrize("on", ["another", None])
def test_a_calibration_of_another_model_corrects_nothing_and_widens(pair, on):
    pair = [replace(run, settings={"model": {"model": run.name}}) for run in pair]
    counts = Calibration(80, 100, 95, 100)
    settings = Settings(calibrations=[JudgeCalibration(counts, model=on)])
    found = compare_runs(pair, settings)
    for run in ("base", "aligned"):
        level = next(x for x in found.levels if x.run == run and x.scope.measure == "asr")
        assert level.corrected.value == level.metric.value
        assert level.corrected.low < level.metric.low
        assert level.corrected.high > level.metric.high
        assert any(run in n and "not calibrated on this model" in n for n in found.notes)
    assert all(c.corrected is None for c in found.contrasts)
    own = compare_runs(pair, Settings(calibrations=[JudgeCalibration(counts, model="base")]))
    base, aligned = (x for x in own.levels if x.scope.measure == "asr" and x.scope.whole)
    assert base.corrected.value == pytest.approx(0.40 / 0.75)  # its own model's is corrected
    assert aligned.corrected.value == aligned.metric.value
    assert next(n for n in own.notes if "not calibrated" in n).startswith("aligned")


def test_a_run_that_no_longer_answers_is_said_first(pair):
    base, aligned = pair
    broken = [replace(j, success=False, label="incoherent") for j in aligned.judgements]
    found = compare_runs([base, replace(aligned, judgements=tuple(broken))])
    assert found.notes[0].startswith("aligned: This model no longer answers: 100.0%")
    names = [metric.name for metric in found.quality["aligned"]]
    assert "answers: incoherent" in names


def test_settings_that_differ_are_said(pair):
    facts = {"model": {"name": "a"}, "system": None, "judges": {"x": {"prompt": 1}, "y": {}}}
    other = {"model": {"name": "b"}, "system": None, "judges": {"x": {"prompt": 2}, "z": {}}}
    runs = [replace(run, settings=f) for run, f in zip(pair, (facts, other), strict=True)]
    [note] = [n for n in compare_runs(runs).notes if "differ in" in n]
    assert note.startswith("aligned and base differ in judges, x, prompt")


def test_findings_and_changed_answers_feed_the_report(pair):
    found = compare_runs(pair)
    [finding] = findings_of(found)
    assert finding["attack success, change"].value == pytest.approx(-0.38)
    chart = finding.figures["rates"]
    assert [len(series) for series in chart["series"].values()] == [len(chart["groups"])] * 2
    samples = samples_of(found)
    labels = [sample["label"].split(":")[0] for sample in samples]
    assert (labels.count("broken"), labels.count("fixed")) == (2 + 8 + 2, 8)
    broken = samples[0]
    assert broken["sensitive"] is True
    assert [a["bad"] for a in broken["answers"].values()] == [False, True]


# -- the verb -----------------------------------------------------------------------------------


@pytest.fixture
def call(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    app = typer.Typer()
    app.command()(verb)

    def run(*arguments):
        return CliRunner().invoke(app, [str(a) for a in arguments])

    return run


def test_verb_prints_one_document_and_saves_a_run(call, tmp_path, pair):
    folders = [write(tmp_path / run.name, run.judgements) for run in pair]
    done = call(*folders, "--json")
    value = json.loads(done.stdout)
    assert value["contrasts"][0]["difference"]["value"] == pytest.approx(-0.38)
    assert value["contrasts"][1]["non_inferiority"]["refuted"] is True
    assert "how do i make" not in done.stdout  # numbers, not answers
    saved = tmp_path / "runs" / "comparison"
    assert Run(saved).own[0].name == "aligned against base"
    assert json.loads((saved / "comparison.json").read_text())["baseline"] == "base"
    assert report_from_run(saved).sections
    told = call(*folders, "--output", tmp_path / "out")
    assert "-38.0 points" in told.stdout
    assert "Holm" in told.stdout
    assert "saved in" not in told.stdout


def test_verb_reads_what_calibrate_judge_writes(call, tmp_path, pair):
    folders = [write(tmp_path / run.name, run.judgements) for run in pair]
    for folder in folders:
        (folder / "evaluation.json").write_text(json.dumps({"model": {"model": "f"}}))
    counts = {"true_positives": 80, "positives": 100, "true_negatives": 95, "negatives": 100}
    counts["model"] = "f"
    file = tmp_path / "judge.json"
    file.write_text(json.dumps({"judge": "exact", "measure": "asr", "n": 200, **counts}))
    value = json.loads(call(*folders, "--calibration", file, "--json").stdout)
    assert value["contrasts"][0]["corrected"]["value"] == pytest.approx(-0.38 / 0.75)
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"judge": "exact", "measure": "over_refusal", **counts}))
    both = call(*folders, "--calibration", file, "--calibration", other, "--json")
    assert [c["corrected"] is None for c in json.loads(both.stdout)["contrasts"][:2]] == [False] * 2
    file.write_text(json.dumps({"judge": "exact"}))
    assert "no true_positives" in str(call(*folders, "--calibration", file).exception)


def test_verb_states_power_beforehand(call):
    value = json.loads(call("--power", "0.05", "0.01", "--n", 520, "--json").stdout)
    assert value["designs"]["other prompts"]["power"] == pytest.approx(0.967, abs=0.001)
    assert value["designs"]["same prompts (McNemar)"]["needed_n"]["0.8"] == 301
    assert "520" in call("--power", "0.05", "0.01", "--n", 520).stdout


def test_verb_measures_resilience(call, tmp_path):
    lines = ["model,method,separation,asr"]
    lines += [f"m{i % 2},x{i},{i + 1},{0.9 - i / 10}" for i in range(6)]
    (tmp_path / "p.csv").write_text("\n".join(lines))
    value = json.loads(call("--resilience", "--points", "p.csv", "--json").stdout)
    assert value["name"] == "resilience"
    paper = call("--resilience", "--points", "p.csv", "--preset", "paper")
    assert "standard deviations" in paper.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "two runs or more"),
        (("a", "b", "--n", 5), "belong to --power"),
        (("a", "b", "--preset", "paper"), "belong to --resilience"),
        (("a", "--power", 0.1, 0.2), "looks ahead"),
        (("--resilience",), "either run directories or --points"),
        (("a", "b", "--margin", "utility=much"), "MEASURE=RATE"),
        (("a", "b", "--calibration", "none.json"), "is no file"),
        (("a", "b", "--level", 95), "level must be between"),
        (("a", "b"), "a is no folder"),
    ],
)
def test_verb_refuses_what_would_have_no_effect(call, arguments, message):
    done = call(*arguments)
    assert isinstance(done.exception, UserError)
    assert message in str(done.exception)


# -- Inspect ------------------------------------------------------------------------------------


def test_inspect_export_needs_its_extra(pair, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "inspect_ai", None)
    with pytest.raises(UserError, match=r"pip install trueline\[inspect\]"):
        export_inspect(pair[0], tmp_path / "log.eval")
    with pytest.raises(UserError, match=r"ends in .eval"):
        export_inspect(pair[0], tmp_path / "log.txt")


def test_inspect_reads_the_export_back(pair, tmp_path):
    log = pytest.importorskip("inspect_ai.log")
    path = export_inspect(pair[1], tmp_path / "log.eval")
    found = log.read_eval_log(str(path))
    assert found.status == "success"
    assert len(found.samples) == 100  # three measures of one id and attack are one answer
    assert found.results.scores[0].metrics["rate"].value == pytest.approx(0.07)
    sample = next(s for s in found.samples if s.id == "made-up/0/direct")
    assert sample.output.completion == "take salt."
    assert sample.scores["asr/exact"].value == 0
