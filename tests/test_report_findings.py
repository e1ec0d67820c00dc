"""Every kind of figure that a finding carries becomes a block; what does not fit is said."""

import ast
import json
from pathlib import Path

import pytest

from trueline.diagnostics.separation import separation_of
from trueline.diagnostics.verdict import verdict, verdict_finding
from trueline.files import write_json
from trueline.report import (
    Curves,
    Heatmap,
    RateChart,
    Scatter,
    Table,
    Verdicts,
    draw,
    render_html,
    report_from_run,
    report_from_runs,
)
from trueline.report.blocks import Sample
from trueline.report.findings import DRAWERS, NOTES
from trueline.report.pages.answers import spread
from trueline.results import Finding, Metric
from trueline.runs.record import Run

SOURCE = Path(__file__).parents[1] / "src" / "trueline"
HISTOGRAM = {"count": [1, 3, 2], "edge": [-1.0, 0.0, 1.0, 2.0]}
FIGURES = {
    "sentences": [{"question": "Why?", "answer": "no", "text": "Because.", "advice": "Try."}],
    "curves": {"x_label": "beta", "panels": [
        {"title": "t", "unit": "u", "lines": [{"name": "a", "x": [1, 2], "y": [3, 4]}]}]},
    "rates": {"groups": ["g"], "series": {
        "m": [{"name": "asr", "value": 0.5, "low": 0.4, "high": 0.6, "n": 9, "unit": "rate"}],
        "k": [None]}},
    "scatter": {"x": [0, 1], "y": [1, 0], "harmful": [True, False], "text": ["a", "b"]},
    "profile": {"probe_auroc": [[None, None, None], [0.7, 0.6, 0.8], [0.9, 0.8, 1.0]]},
    "pairs": {"id": ["1", "2"], "case": ["ideal", "other"], "change_chosen": [1.0, None],
              "change_rejected": [-1.0, 2.0]},
    "gram": {"labels": ["f.jsonl:1 chosen", "f.jsonl:1 rejected"],
             "inner": [[4.0, 1.0], [1.0, 1.0]]},
    "layers": {"layer": ["embed", "layer 0"], "inner": [1, 2], "squared_norm_chosen": [1, 1],
               "squared_norm_rejected": [1, 1], "cosine": [0.1, -0.2]},
    "heat_maps": [{"id": "1", "chosen": ["a", "a"], "rejected": ["b"], "cosine": [[0.1], [-0.4]],
                   "inner": [[1], [2]], "cut": True}],
    "difficulty": HISTOGRAM,
    "margin": HISTOGRAM,
    "c": HISTOGRAM,
    "cosines": {"selected": [0.2, 0.8], "all": [0.5, 0.5]},
}  # fmt: skip
MORE = {"centers": [-0.5, 0.5], "reach": {"title": "DPO at beta 0.1", "limit": 69.1}}


@pytest.mark.parametrize("kind", FIGURES)
def test_each_kind_is_drawn(kind):
    data = json.loads(json.dumps({kind: FIGURES[kind], **MORE}))  # as it comes back from a file
    drawn = draw(Finding("f", "s", figures=data))
    assert drawn.problems == []
    assert drawn.blocks
    assert set(FIGURES) == set(DRAWERS)


def test_blocks_hold_what_the_figures_said():
    def block(kind):
        return draw(Finding("f", "", figures={kind: FIGURES[kind], **MORE})).blocks[0]

    kinds = {"gram": Heatmap, "rates": RateChart, "sentences": Verdicts, "pairs": Scatter,
             "profile": Curves}  # fmt: skip
    for kind, expected in kinds.items():
        assert isinstance(block(kind), expected)
    assert block("gram").values == [[1.0, 0.5], [0.5, 1.0]]
    assert block("gram").rows == ["1 chosen", "1 rejected"]
    assert block("rates").series["m"][0] == Metric("asr", 0.5, 0.4, 0.6, 9, unit="rate")
    (line,) = block("profile").panels[0].lines
    assert (line.x, line.y, line.low) == ([1, 2], [0.7, 0.9], [0.6, 0.8])
    assert block("pairs").panels[0].x == [1.0]  # a pair without a finite change has no place
    assert block("difficulty").panels[0].lines[0].x == [-0.5, 0.5, 1.5]
    assert "Beyond 69.1" in block("difficulty").caption


def test_what_cannot_be_drawn_is_said(tmp_path):
    figures = {"tree": [1], "profile": {"probe_auroc": [[1]]}, "reach": {}}
    Run(tmp_path).save([Finding("f", "s", figures=figures)])
    said = report_from_run(tmp_path).sections[-1].text
    assert "a figure of a kind this report does not draw: tree" in said
    assert "the profile of f cannot be drawn" in said
    assert "reach" not in said


def test_every_kind_that_the_source_writes_is_known():
    """A literal figures={"kind": ...} anywhere in the package has a drawer or is a note."""
    found = set()
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not (isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Finding"):
                continue
            given = [k.value for k in node.keywords if k.arg == "figures"] + node.args[4:5]
            found |= {
                key.value
                for value in given
                if isinstance(value, ast.Dict)
                for key in value.keys
                if isinstance(key, ast.Constant)
            }
    assert {"scatter", "profile", "curves"} <= found
    assert found <= set(DRAWERS) | NOTES


def test_real_findings_become_sections(tmp_path):
    import numpy as np

    draws = np.random.default_rng(0)
    labels = [True] * 40 + [False] * 40
    states = draws.normal(size=(80, 6)) + 3 * np.asarray(labels)[:, None]
    apart = separation_of(states, labels, n_bootstrap=50)
    told = verdict_finding(verdict([apart]))
    Run(tmp_path).save([told, apart])
    report = report_from_run(tmp_path)
    assert [s.title for s in report.sections][:2] == [
        "What training did, and why", "Separation",
    ]  # fmt: skip
    assert report.told == [told.summary]
    page = render_html(report)
    assert page.count("Did safe and harmful prompts separate?") == 1


def test_a_metric_before_and_after_stands_in_one_row(tmp_path):
    metrics = [
        Metric("ranking accuracy, before", 0.4, 0.3, 0.5, 99, unit="rate"),
        Metric("ranking accuracy, after", 0.7, 0.6, 0.8, 99, unit="rate"),
        Metric("eval_loss", 0.6),
    ]
    Run(tmp_path).save([Finding("held-out", "s", metrics)])
    report = report_from_run(tmp_path)
    (table,) = [b for b in report.sections[0].blocks if isinstance(b, Table)]
    assert table.columns == ("", "before", "after")
    assert [[row[0], row[1] is None] for row in table.rows] == [
        ["ranking accuracy", False], ["eval loss", True],
    ]  # fmt: skip
    (highlight,) = report.highlights
    assert highlight.sure
    assert (highlight.before.value, highlight.value.value) == (0.4, 0.7)


def judged(folder, answers):
    """An evaluation folder of twenty harmful prompts: which attacks succeed."""
    rows = [
        {"id": str(i), "benchmark": "b", "attack": "direct", "judge": "j", "measure": "asr",
         "prompt": f"harmful thing {i}", "answer": "sure" if bad else "no", "harmful": True,
         "verdict": "yes" if bad else "no", "success": bad, "group": None, "truncated": False,
         "empty": False, "unparsable": False}
        for i, bad in enumerate(answers)
    ]  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "judgements.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder.parent if folder.name == "evaluation" else folder


def test_judged_runs_are_compared_prompt_by_prompt(tmp_path):
    base = judged(tmp_path / "base", [True] * 18 + [False] * 2)
    aligned = judged(tmp_path / "aligned" / "evaluation", [True] * 3 + [False] * 17)
    report = report_from_runs([base, aligned])
    assert "aligned against base: attack success fell from 90.0% to 15.0%" in report.summary
    assert [(d.verdict, d.role) for d in report.decisions] == [
        ("do not ship", "baseline"), ("undecided", ""),
    ]  # fmt: skip
    titles = [s.title for s in report.sections]
    assert titles[:2] == ["Differences on the same prompts", "Answers"]
    tables = [b for b in report.sections[0].blocks if isinstance(b, Table)]
    assert tables[0].rows[0][-2].value == "15 fixed, 0 broken"
    (rows,) = report.sections[1].blocks
    assert len(rows) == 20
    render_html(report)


def test_no_difference_is_not_called_one(tmp_path):
    base = judged(tmp_path / "base", [True] * 9 + [False] * 11)
    aligned = judged(tmp_path / "aligned", [True] * 8 + [False] * 12)
    report = report_from_runs([base, aligned])
    assert "no difference shown in attack success" in report.summary
    assert "no difference shown in attack success" in render_html(report)


def test_the_data_and_how_it_was_made_are_told(tmp_path):
    finding = Finding("selection", "Chose the dissimilar half.", figures={
        "cosines": FIGURES["cosines"], "centers": [-0.5, 0.5]})  # fmt: skip
    write_json(
        tmp_path / "pairs.manifest.json",
        {"verb": "select", "finding": finding.to_dict(), "counts": {"pairs": 7},
         "dropped": {"too short": {"count": 2, "places": []}}},
    )  # fmt: skip
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(
        f"dataset_name: {tmp_path / 'pairs.jsonl'}\nhub_token: hidden-thing\n"
    )
    write_json(run / "manifest.json", {"data": "pairs.jsonl", "train_examples": 7})
    report = report_from_run(run)
    (data,) = [s for s in report.sections if s.title == "Data"]
    page = render_html(report)
    assert "Chose the dissimilar half." in page
    assert "left out: too short" in page
    assert any(isinstance(block, Curves) for block in data.blocks)
    assert "hidden-thing" not in page


def test_samples_on_the_page_are_of_every_kind():
    samples = [Sample(str(i), [], label="many") for i in range(50)]
    samples += [Sample("rare", [], True, "rare")]
    chosen = spread(samples, 10)
    assert len(chosen) == 10
    assert chosen[-1].prompt == "rare"
    assert [s.prompt for s in chosen[:3]] == ["0", "1", "2"]
