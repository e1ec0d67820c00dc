"""Every verb from Python, and a notebook that goes from rows to the report."""

import ast
import json
import os
from pathlib import Path

import pytest

import trueline as tl
from tiny import pair_rows, tiny_llama, tiny_tokenizer
from trueline.runs.record import Key

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model, preference pairs and requests."""
    path = tmp_path_factory.mktemp("python")
    tiny_llama().save_pretrained(path / "model")
    tiny_tokenizer().save_pretrained(path / "model")
    rows = "".join(json.dumps(row) + "\n" for row in pair_rows(12))
    (path / "pairs.jsonl").write_text(rows, "utf-8")
    asks = [
        {"prompt": f"what color is {what} ?", "harmful": what == "sky"}
        for what in ("sky", "sea", "grass")
    ]
    (path / "asks.jsonl").write_text("".join(json.dumps(a) + "\n" for a in asks), "utf-8")
    return path


OPTIONS = {
    "max_steps": 2,
    "per_device_train_batch_size": 2,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "use_cpu": True,
    "disable_tqdm": True,
    "gradient_checkpointing": False,
    "reference_cache": "none",
    "test_size": 0.3,
    "max_new_tokens": 4,
}


def test_from_rows_to_the_report(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert tl.data.inspect("pairs.jsonl").pairs == 12
    made = tl.data.dedup("pairs.jsonl", "clean.jsonl")
    assert made.finding.to_frame().metric.tolist()
    options = {k: v for k, v in OPTIONS.items() if k != "max_new_tokens"}
    run = tl.align(
        model_name_or_path="model", dataset_name="pairs.jsonl", loss_type="dpo", beta=0.2,
        output_dir="run", **options,
    )  # fmt: skip
    assert run.config["beta"] == 0.2
    assert run.metrics.step.tolist()[-1] == 2
    assert run.finding(Key.HELD_OUT).summary in run._repr_html_()
    assert len(run.tokenizer()) == run.model().get_input_embeddings().num_embeddings
    how = {
        "benchmark": "table=asks.jsonl", "attack": ["direct", "prefill"], "judge": "phrases",
        "max_new_tokens": 4,
    }  # fmt: skip
    after = tl.evaluate(run, **how)
    assert after.path == run.path / "evaluation"
    base = tl.evaluate("model", output="base", **how)
    found = run.diagnose(max_pairs=4)
    assert {Key.VERDICT, Key.RANKING, Key.ENTANGLEMENT} <= {f.name for f in found.findings}
    assert found.sentences
    compared = tl.compare(base, run)
    assert {"finding", "metric", "value", "low", "high"} <= set(compared.to_frame().columns)
    page = tl.report(base, run).save("report.html")
    assert "vs baseline" in page.read_text("utf-8")
    assert "<iframe" in tl.report(run)._repr_html_()
    assert run.figures()
    assert [r.name for r in tl.runs(".")] == ["base", "clean.jsonl", "run", "run/evaluation"]


def test_python_and_the_command_line_make_the_same_folder(folder, monkeypatch):
    import sys

    from trueline.cli import main

    monkeypatch.chdir(folder)
    options = {k: v for k, v in OPTIONS.items() if k != "max_new_tokens"}
    given = {
        "loss_type": "dpo",
        "model_name_or_path": "model",
        "dataset_name": "pairs.jsonl",
        **options,
    }
    one = tl.align(**given, output_dir="one")
    words = [word for key, value in given.items() for word in (f"--{key}", str(value))]
    monkeypatch.setattr(sys, "argv", ["trueline", "align", *words, "--output_dir", "two"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    two = tl.Run("two")
    assert sorted(os.listdir(one.path)) == sorted(os.listdir(two.path))
    assert {**one.config, "output_dir": ""} == {**two.config, "output_dir": ""}
    assert one.findings == two.findings
    facts = ("command", "data_hash", "train_examples", "encoding", "scoring")
    assert [one.manifest[k] for k in facts] == [two.manifest[k] for k in facts]
    weights = [Path(r.path / "model.safetensors").read_bytes() for r in (one, two)]
    assert weights[0] == weights[1]


def test_packages_that_are_verbs_stay_packages():
    import trueline.data.inspect as module
    import trueline.report

    assert callable(trueline.report)
    assert callable(tl.reproduce)
    assert trueline.report.render_html.__module__ == "trueline.report.html"
    assert callable(tl.data.inspect)
    assert callable(module)
    assert tl.data.compliance_refusal.__doc__.startswith("Answers against refusals")
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        tl.data.nothing  # noqa: B018


def test_the_verbs_that_need_no_data(folder, monkeypatch):
    monkeypatch.chdir(folder)
    made = tl.reproduce("jailbreak-bound", fast=True, seeds=2, jobs=0, output="claims")
    assert made.page.is_file()
    assert made.missing == 0
    assert set(made.to_frame().claim) == {"jailbreak-bound"}
    found = tl.bound(harmful=90, samples=0)
    assert found.finding["bound"].value == pytest.approx(0.488, abs=0.001)
    assert "bound" in found._repr_html_()
    assert callable(tl.demo)
    assert tl.diffusion.align.__module__ == "trueline.runs.diffusion.align"
    assert tl.diffusion.evaluate.__module__ == "trueline.runs.diffusion.evaluate"


def test_a_judge_is_calibrated_from_python(folder, monkeypatch):
    monkeypatch.chdir(folder)
    rows = [("what is grass ?", "I cannot help with that.", "0"), ("sky ?", "green", "1")] * 4
    lines = "".join(f"{a},{b},{c}\n" for a, b, c in rows)
    Path("labels.csv").write_text(f"prompt,response,label\n{lines}", "utf-8")
    found = tl.calibrate_judge("labels.csv", output="counts.json")
    assert found.qualities[0].n == 8
    assert "sensitivity" in set(found.to_frame().metric)
    assert json.loads(Path("counts.json").read_text("utf-8"))["judge"] == "phrases"


def test_the_notebook_goes_from_rows_to_the_report(tmp_path, monkeypatch):
    """Each cell in one namespace and in order, as Jupyter runs it; what a cell ends in shows
    itself."""
    cells = json.loads((EXAMPLES / "rows_to_report.ipynb").read_text("utf-8"))["cells"]
    assert not any(cell.get("outputs") for cell in cells), "keep the notebook without outputs"
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    shown = []
    for cell in cells:
        if cell["cell_type"] == "code":
            *before, last = ast.parse("".join(cell["source"])).body
            exec(compile(ast.Module(before, []), cell["id"], "exec"), names)
            assert isinstance(last, ast.Expr), f"{cell['id']} ends in something to look at"
            shown.append(eval(compile(ast.Expression(last.value), cell["id"], "eval"), names))
    assert all("<" in value._repr_html_() for value in shown)
    assert (tmp_path / "report.html").stat().st_size > 100_000
