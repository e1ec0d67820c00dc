"""One boundary of errors: whatever a user gives is taken as it says, or refused in one line."""

import contextlib
import errno
import json
import math
import pickle
import signal
import sys

import pytest
import yaml
from safetensors import SafetensorError

from test_training import trainer
from tiny import pair_rows
from trueline.cli import app, main
from trueline.config import (
    NOT_NEEDED,
    AlignmentConfig,
    ConfigError,
    DataArguments,
    ModelArguments,
    WatchArguments,
    coerce,
    load_run_config,
    parse_overrides,
    read_yaml,
)
from trueline.config.ranges import ELSEWHERE, RANGES, numeric_keys
from trueline.diffusion.config import OWN_RANGES, DiffusionConfig, load_diffusion_config
from trueline.diffusion.evaluation.scorers import make_scorer
from trueline.errors import Unfinished, UserError, built_from_options
from trueline.objectives import bind
from trueline.runs.record import Run
from trueline.runs.state import created, held

KEYS = {
    key: whole
    for config in (AlignmentConfig, ModelArguments, DataArguments, WatchArguments)
    for key, whole in numeric_keys(config).items()
    if key not in ELSEWHERE and key not in NOT_NEEDED  # which is said to have no effect
}
BAD = ["-5", ".nan", ".inf", "-.inf", "1e400"]


@pytest.mark.parametrize("key", KEYS)
def test_i9_i10_no_number_is_taken_as_it_comes(key):
    for value in BAD:
        with pytest.raises(UserError, match=key):
            load_run_config(None, {key: value, "use_cpu": "true", "loss_type": "dpo"})


@pytest.mark.parametrize("key", numeric_keys(DiffusionConfig))
def test_i9_i10_no_number_of_a_diffusion_is_taken_as_it_comes(key):
    for value in BAD:
        with pytest.raises(UserError, match=key):
            load_diffusion_config(None, {key: value}).bind()


def test_ranges_name_keys_that_exist():
    assert set(RANGES) - NOT_NEEDED.keys() <= set(KEYS)
    assert set(OWN_RANGES) <= set(numeric_keys(DiffusionConfig))


def test_i10_what_was_silently_accepted(tmp_path):
    with pytest.raises(ConfigError, match="--beta is given twice"):
        parse_overrides(["--beta", "0.1", "--beta=0.2"])
    for rows in ([{"prompt": "why ?", "completion": "yes no", "label": True}] * 4,
                 [{"prompt": "why ?", "completion": "yes no", "label": False}] * 4):  # fmt: skip
        for name in ("kto", "bco", "kldo"):
            with pytest.raises(UserError, match="allow_one_class: true"):
                trainer(tmp_path, rows=rows, loss_type=name)
    trainer(tmp_path, rows=pair_rows(4), loss_type="kldo")


@pytest.mark.parametrize("path", [":", "a:", ":b", ".a:b", "a..b:c", "a b:c", "a:b:c"])
def test_i9_names_that_no_module_can_have(path):
    with pytest.raises(UserError, match=r"my_package\.losses:my_loss"):
        bind(path, {})
    with pytest.raises(UserError, match=r"my_package\.module:function"):
        make_scorer(path, "cpu")


def test_i9_values_that_are_no_yaml():
    for text in ("{", "[", "'", '"', "a: b: c", "!!python/object:os.system", "*x", "%", "@a", "`"):
        assert coerce("output_dir", text, str | None) == text
        with pytest.raises(UserError):
            coerce("learning_rate", text, float)
    for key in ("dtype", "dataset_name", "model_name_or_path", "chat_template"):
        with pytest.raises(ConfigError, match=f"{key} must be str, got True"):
            coerce(key, True, str | None)
    assert coerce("resume_from_checkpoint", True, str | None) is True


@pytest.mark.parametrize(
    "content", [b"{", b"a: [1", b"\xff\xfe", "beta: é".encode("latin-1"), b"- 1\n- 2\n", b"\x00"]
)
def test_i9_configuration_files_that_cannot_be_read(content, tmp_path):
    file = tmp_path / "a.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"a\.yaml"):
        read_yaml(file)
    with pytest.raises(ConfigError):
        read_yaml(tmp_path)


RAISED = {
    "user": (UserError("beta must be > 0"), 2, "error: beta must be > 0"),
    "disk full": (OSError(errno.ENOSPC, "No space left on device", "a/b"), 2, "a/b: No space left"),
    "read-only": (
        PermissionError(errno.EACCES, "Permission denied", "x"),
        2,
        "x: Permission denied",
    ),
    "missing": (
        FileNotFoundError(errno.ENOENT, "No such file or directory", "y"),
        2,
        "error: y: No",
    ),
    "yaml": (yaml.scanner.ScannerError(None, None, "bad", None), 2, "error: bad"),
    "weights": (SafetensorError("Error while deserializing header"), 2, "deserializing header"),
    "pickle": (pickle.UnpicklingError("Weights only load failed"), 2, "Weights only load failed"),
    "json": (json.JSONDecodeError("Expecting value", "", 0), 2, "Expecting value"),
    "letters": (
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
        2,
        "invalid start",
    ),
    "memory": (MemoryError(), 2, "error: out of memory"),
    "no model": (Unfinished("no model was written to run"), 1, "error: no model was written"),
    "fault": (ZeroDivisionError("division by zero"), 70, "internal error: ZeroDivisionError"),
    "key": (KeyError("x"), 70, "please report it with /"),
    "names": (UserError("no file a\x1b[31m\nb\u202ec"), 2, "no file a\\x1b[31m\\nb\\u202ec"),
    "control-c": (KeyboardInterrupt(), 130, "interrupted"),
}


@pytest.mark.parametrize("name", RAISED)
def test_i9_i11_every_error_is_a_clear_line(name, monkeypatch, capsys):
    error, code, said = RAISED[name]

    def fail():
        raise error

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(app, "app", fail)
    monkeypatch.setattr(sys, "argv", ["trueline"])
    with pytest.raises(SystemExit) as stopped:
        main()
    signal.signal(signal.SIGTERM, before)
    lines = capsys.readouterr().err.splitlines()
    assert stopped.value.code == code
    assert said in "\n".join(lines)
    assert len(lines) == (2 if code == 70 else 1)


def test_i11_names_reach_the_terminal_escaped(tmp_path, monkeypatch, capsys):
    """Whatever a command says of a file or a folder: its name moves no cursor, turns no line."""
    odd = "a\x1b[31m\u202eb"
    folder = tmp_path / odd
    folder.mkdir()
    (folder / f"{odd}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pair_rows(3)))
    (folder / f"{odd}.csv").write_text("prompt\nx")
    with held(folder / "run") as run:
        created(run, "align", data=f"{odd}.jsonl")
    rows = str(folder / f"{odd}.jsonl")
    for words in (
        ["data", "inspect", rows],
        ["data", "inspect", str(folder / f"{odd}.csv")],
        ["data", "convert", rows, str(folder / f"{odd}-out.jsonl"), "--to", "example"],
        ["data", "dedup", rows, str(folder / f"{odd}-less.jsonl")],
        ["runs", str(folder)],
        ["report", str(folder)],
        ["align", "--config", str(folder / f"{odd}.yaml")],
        ["align", "--loss_type", "dpo", "--dataset_name", rows, "--model_name_or_path", odd],
        ["evaluate", "--model", odd, "--benchmark", f"table={folder / odd}"],
        ["diffusion", "align", "--dataset_name", str(folder), "--model_name_or_path", odd],
    ):
        monkeypatch.setattr(sys, "argv", ["trueline", *words])
        with contextlib.suppress(SystemExit):
            main()
        said = "".join(capsys.readouterr())
        assert said
        assert not {"\x1b", "\u202e"} & set(said), words


def test_i6_a_signal_where_nothing_is_saved_says_so(monkeypatch, capsys):
    before = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGHUP)}
    for number in before:
        monkeypatch.setattr(app, "app", lambda number=number: signal.raise_signal(number))
        with pytest.raises(SystemExit) as stopped:
            main()
        assert stopped.value.code == 128 + number
        assert capsys.readouterr().err == f"ended by {signal.Signals(number).name}\n"
    for number, handler in before.items():
        signal.signal(number, handler)


def test_numbers_that_are_good_are_taken():
    values = {"learning_rate": "5e-7", "max_steps": "-1", "seed": "0", "warmup_steps": "0.1"}
    run = load_run_config(None, {**values, "use_cpu": "true", "loss_type": "dpo"})
    assert math.isclose(run.training.learning_rate, 5e-7)


def test_i14_a_model_that_is_not_there_is_exit_1(tmp_path, monkeypatch):
    """What is said to be there is there; where DeepSpeed left pieces, how to put them together."""
    made = trainer(tmp_path / "run")
    monkeypatch.setattr(made, "_save", lambda *args, **how: None)
    with pytest.raises(Unfinished, match="no model was written to "):
        made.save_model()
    (tmp_path / "run").mkdir(exist_ok=True)
    (tmp_path / "run" / "zero_to_fp32.py").write_text("")
    with pytest.raises(Unfinished, match=r"zero_to_fp32.py .* puts them together"):
        made.save_model()


def test_i9_what_a_library_refuses_is_the_users_to_read():
    def take(value):
        with built_from_options():
            return json.loads(value)

    with pytest.raises(UserError, match="json takes no such option: Expecting property"):
        take("{")
    with pytest.raises(ZeroDivisionError), built_from_options():
        print(1 / 0)
    with pytest.raises(UserError, match="objective_options must be dict, got 'x'"):
        load_run_config(None, {"objective_options": "x", "use_cpu": "true", "loss_type": "dpo"})


def test_lines_end_at_newlines_alone(tmp_path):
    run = Run(tmp_path)
    run.write_samples([{"prompt": "a\u2028b", "answer": "c\x85d"}])
    assert [row["prompt"] for row in run.samples] == ["a\u2028b"]
    assert not run.missing
