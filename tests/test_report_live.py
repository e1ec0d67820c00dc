"""A training as a page while it goes on: alarms in words, and an end."""

import json
import threading
import time

import pytest
from typer.testing import CliRunner

from trueline.cli.app import app
from trueline.errors import UserError
from trueline.report.live import alarms, live_report
from trueline.runs.live import watch
from trueline.runs.record import STATE, Run
from trueline.runs.state import State, created, reached


def log(count=30, **series):
    """Rows of a healthy training; each series is a function of the share done."""
    healthy = {
        "loss": lambda t: 0.7 - 0.3 * t, "grad_norm": lambda t: 1.0 + 0.1 * t,
        "logps/chosen": lambda t: -30 + 3 * t, "logps/rejected": lambda t: -20 - 9 * t,
        "rewards/accuracies": lambda t: 0.5 + 0.4 * t, "eval_loss": lambda t: 0.7 - 0.2 * t,
        "entangle/case_both_fall": lambda t: 0.2, "answers/none": lambda t: 0.0,
        "diffusion/chosen_error": lambda t: 1.0 - 0.1 * t,
        "diffusion/chosen_shift": lambda t: -0.1 * t,
    }  # fmt: skip
    every = {**healthy, **{name.replace("__", "/"): f for name, f in series.items()}}
    return [
        {"step": i + 1, "epoch": (i + 1) / 10, **{k: f(i / count) for k, f in every.items()}}
        for i in range(count)
    ]


def test_a_healthy_training_sounds_no_alarm():
    assert list(alarms(log())) == []
    assert list(alarms([])) == []
    assert list(alarms(log(1))) == []


@pytest.mark.parametrize(
    ("series", "said"),
    [
        ({"loss": lambda t: float("nan") if t > 0.5 else 0.5}, "The loss is nan at step 17"),
        ({"grad_norm": lambda t: 50.0 if t > 0.95 else 1.0}, "50 times its usual"),
        ({"logps__chosen": lambda t: -30 - 20 * t}, "both become less likely"),
        ({"rewards__accuracies": lambda t: 0.3}, "prefers the rejected answer in 70%"),
        ({"eval_loss": lambda t: abs(t - 0.3) + 0.4}, "lowest at step 10"),
        ({"entangle__case_both_fall": lambda t: 0.8}, "at 80% of the pairs"),
        ({"answers__none": lambda t: t}, "no longer answers: 97%"),
        ({"diffusion__chosen_error": lambda t: 1.0 + 0.5 * t,
          "diffusion__chosen_shift": lambda t: 0.5 * t}, "chosen pictures is 45% above"),
    ],
)  # fmt: skip
def test_each_alarm_sounds_alone_and_in_words(series, said):
    (told,) = alarms(log(**series))
    assert said in told


def write(folder, rows):
    run = Run.create(folder)
    run.write_config({"loss_type": "dpo", "num_train_epochs": 3})
    (run.path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run.path


def finish(folder):
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 30, "train_runtime": 9.0}) + "\n")
    (folder / "config.json").write_text('{"model_type": "tiny"}')


def test_the_page_says_where_it_stands_and_shows_chosen_and_rejected_apart(tmp_path):
    report = live_report("kldo", log(15), total=30, state="running")
    assert (report.title, report.summary) == ("kldo at step 15 of 30 (50%)", "No alarm.")
    (curves,) = report.sections[0].blocks
    names = {line.name for panel in curves.panels for line in panel.lines}
    assert {"chosen", "rejected", "both fall"} <= names
    run = write(tmp_path / "<b>run</b>", log(15, loss=lambda t: float("nan")))
    page = watch(run, once=True, quiet=True).read_text("utf-8")
    assert "<b>run</b>" not in page
    assert "step 15 of 30 (50%)" in page
    assert "The loss is nan" in page
    assert 'http-equiv="refresh"' not in page  # nobody will write it again


def test_it_is_written_while_the_log_grows_and_ends_with_the_training(tmp_path):
    run = write(tmp_path / "run", log(10))
    page = run / "live.html"
    thread = threading.Thread(target=watch, args=(run,), kwargs={"every": 0.02, "quiet": True})
    thread.start()
    while not page.exists():
        assert thread.is_alive()
        time.sleep(0.01)
    assert 'http-equiv="refresh" content="1"' in page.read_text("utf-8")
    write(run, log(30))
    finish(run)
    thread.join(60)
    assert not thread.is_alive()
    text = page.read_text("utf-8")
    assert "run: finished, step 30" in text
    assert 'http-equiv="refresh"' not in text


def test_a_run_that_was_broken_off_is_watched_no_longer(tmp_path):
    run = write(tmp_path / "run", log(10))
    created(Run(run), "align")
    state = json.loads((run / STATE).read_text())
    reached(Run(run), State.BROKEN_OFF, "out of memory")
    page = watch(run, quiet=True).read_text("utf-8")
    assert "run: broken off (out of memory), step 10" in page
    state["owner"] = None  # its process died and could write nothing
    (run / STATE).write_text(json.dumps(state))
    assert "broken off" in watch(run, quiet=True).read_text("utf-8")


def test_the_command(tmp_path):
    run = write(tmp_path / "run", log(10))
    finish(run)
    done = CliRunner().invoke(app, ["watch", str(run), "--json"])
    assert json.loads(done.stdout) == {"page": str(run / "live.html")}
    with pytest.raises(UserError, match="no run directory"):
        watch(tmp_path / "nowhere")
    with pytest.raises(UserError, match="positive number"):
        watch(run, every=0)
