"""One plug-in law: the eight outside plug-ins of docs/extending.md, each one file, run through
their verbs, and what is refused."""

import importlib
import json
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import trueline
from tiny import pair_rows, tiny_llama, tiny_tokenizer
from trueline import plugins
from trueline.curation.jobs.step import CURATIONS
from trueline.diagnostics.question import QUESTIONS
from trueline.errors import UserError
from trueline.evaluation.attacks import ATTACKS
from trueline.evaluation.benchmarks import BENCHMARKS
from trueline.evaluation.judges import JUDGES
from trueline.objectives import OBJECTIVES
from trueline.report.findings import DRAWERS
from trueline.reproduce.claim import CLAIMS
from trueline.reproduce.runs import EXPERIMENTS
from trueline.runs.record import Key, Run

PAGE = (Path(__file__).parents[1] / "docs" / "extending.md").read_text("utf-8")
BLOCKS = dict(re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE, re.DOTALL))


@pytest.fixture(autouse=True, scope="module")
def registries_as_before():
    """What plug-ins register stays in this module: other tests count what is registered."""
    for found in pkgutil.walk_packages(trueline.__path__, "trueline."):
        if not found.name.endswith("__main__"):
            importlib.import_module(found.name)  # some register when they are first used
    held = [OBJECTIVES, ATTACKS, JUDGES, BENCHMARKS, QUESTIONS, CURATIONS, CLAIMS, EXPERIMENTS]
    tables = [part for r in held for part in (r._entries, r._aliases)] + [DRAWERS]
    before = [dict(table) for table in tables]
    yield
    for table, kept in zip(tables, before, strict=True):
        table.clear()
        table.update(kept)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The page's files, a tiny model and data."""
    path = tmp_path_factory.mktemp("plugins")
    for name, text in BLOCKS.items():
        (path / name).write_text(text, "utf-8")
    tiny_llama().save_pretrained(path / "model")
    tiny_tokenizer().save_pretrained(path / "model")
    rows = "".join(json.dumps(row) + "\n" for row in pair_rows(8))
    (path / "pairs.jsonl").write_text(rows, "utf-8")
    (path / "asks.txt").write_text("what color is the sea ?\nwhat color is grass ?\n", "utf-8")
    return path


def run(folder, monkeypatch, *words):
    """The command line in this process, from `folder`; its JSON."""
    from trueline.cli import main

    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["trueline", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code


def test_the_page_has_eight(folder):
    assert len(BLOCKS) == 8


def test_an_objective_is_aligned_with(folder, monkeypatch):
    run(folder, monkeypatch, "align", "--import", "steady.py", "--loss_type", "steady",
        "--strength", "0.5", "--model_name_or_path", "model", "--dataset_name", "pairs.jsonl",
        "--max_steps", 1, "--per_device_train_batch_size", 2, "--logging_steps", 1,
        "--save_strategy", "no", "--report_to", "none", "--output_dir", "aligned", "--json",
        "--reference_cache", "none", "--use_cpu", "true")  # fmt: skip
    config = Run(folder / "aligned").config
    assert (config["loss_type"], config["strength"]) == ("steady", 0.5)


def test_attack_judge_and_benchmark_make_an_evaluation(folder, monkeypatch):
    run(folder, monkeypatch, "evaluate", "--import", "polite.py", "--import", "brief.py",
        "--import", "lines.py", "-m", "model", "-b", "lines=asks.txt", "-a", "polite,word=maybe",
        "-j", "brief,words=3", "--max-new-tokens", 4, "--output", "judged", "--json")  # fmt: skip
    judged = Run(folder / "judged")
    assert judged.finding(Key.judged("brief")).metrics
    assert judged.config["import"] == ["polite.py", "brief.py", "lines.py"]


def test_a_question_is_asked_and_a_drawing_shows_it(folder, monkeypatch):
    record = Run.create(folder / "asked")
    run(folder, monkeypatch, "diagnose", "verbosity", "--import", "verbosity.py", "--by", 1,
        "--model", "model", "--data", "pairs.jsonl", "--save", "asked", "--json")  # fmt: skip
    assert Run(record.path).finding("verbosity").metrics[0].n == 8
    run(folder, monkeypatch, "report", "asked", "--import", "bars.py", "--json")
    page = (folder / "asked" / "report.html").read_text("utf-8")
    assert "longer by" in page
    assert "does not draw" not in page


def test_a_step_curates(folder, monkeypatch):
    run(folder, monkeypatch, "data", "shorter", "pairs.jsonl", "short.jsonl", "--max-words", 7,
        "--import", "shorter.py", "--json")  # fmt: skip
    import trueline as tl

    made = tl.data.shorter("pairs.jsonl", "again.jsonl", max_words=7)
    assert made.manifest["dropped"]["a long prompt"]["count"] == 8 - made.manifest["counts"]["rows"]
    assert (folder / "short.jsonl").read_bytes() == (folder / "again.jsonl").read_bytes()


def test_a_claim_is_measured(folder, monkeypatch):
    run(folder, monkeypatch, "reproduce", "halves", "--import", "halves.py", "--seeds", 2,
        "--jobs", 0, "--output", "study", "--json")  # fmt: skip
    assert "A half is a half." in (folder / "study" / "reproduction.md").read_text("utf-8")


def test_help_has_the_options_of_a_plug_in(folder):
    done = subprocess.run(
        [sys.executable, "-c", "from trueline.cli import main; main()", "data", "shorter",
         "--help", "--import=shorter.py"],
        cwd=folder, capture_output=True, text=True, env={**__import__("os").environ,
        "COLUMNS": "120"})  # fmt: skip
    assert "--max-words" in done.stdout
    assert "Words of a prompt, at most." in done.stdout


def test_what_cannot_be_imported_is_one_line(folder):
    with pytest.raises(UserError, match=r"there is no such file"):
        plugins.load(["nothing.py"])
    with pytest.raises(UserError, match=r"--import no_such_module failed"):
        plugins.load(["no_such_module"])
    plugins.load([str(folder / "shorter.py")])  # twice is once
    plugins.load([str(folder / "shorter.py")])


def test_an_installed_package_names_its_plug_ins(monkeypatch):
    loaded = []

    class Entry:
        name, value = "mine", "my_package.plugins"

        def load(self):
            loaded.append(self.name)

    monkeypatch.setattr(plugins.metadata, "entry_points", lambda *, group: [Entry()])
    plugins._installed.cache_clear()
    plugins.load()
    plugins.load()
    plugins._installed.cache_clear()
    assert loaded == ["mine"]
