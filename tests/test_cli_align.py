"""`trueline align` as a user runs it: real files, recipes, a TRL configuration, wrong input."""

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import transformers
import yaml

from tiny import pair_rows, tiny_llama, tiny_tokenizer
from trueline.cli import main
from trueline.config import ConfigError, load_run_config, parse_overrides
from trueline.errors import UserError
from trueline.models import lora_config
from trueline.objectives import OBJECTIVES, bind

ROOT = Path(__file__).parents[1]
RECIPES = [p for f in ("recipes", "hh") for p in sorted((ROOT / "examples" / f).glob("*.yaml"))]
OPTIONS = {name for spec in OBJECTIVES.values() for name in spec.options}
HH = ROOT.parent / "shared" / "data" / "hh-rlhf-harmless-base-test.jsonl.gz"


def trueline(*arguments):
    command = [str(Path(sys.executable).with_name("trueline")), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture
def model_folder(tmp_path):
    folder = tmp_path / "model"
    tiny_llama().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def pairs_file(tmp_path):
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in pair_rows(40)))
    return file


def arguments_for(model, data, output, **more):
    options = {
        "model_name_or_path": model,
        "dataset_name": data,
        "output_dir": output,
        "loss_type": "dpo",
        "test_size": 0.3,
        "max_steps": 3,
        "logging_steps": 1,
        "learning_rate": 1e-3,
        "reference_cache": "none",
        "gradient_checkpointing": "false",
        "use_cpu": "true",
        **more,
    }
    return [x for key, value in options.items() for x in (f"--{key}", value)]


def test_align_leaves_a_whole_run_directory(tmp_path, model_folder, pairs_file):
    output = tmp_path / "run"
    done = trueline("align", *arguments_for(model_folder, pairs_file, output), "--json")
    result = json.loads(done.stdout)
    assert result["steps"] == 3
    names = {metric["name"] for metric in result["findings"][0]["metrics"]}
    assert {
        "ranking accuracy, before",
        "ranking accuracy, after",
        "reward accuracy, after",
    } <= names
    for metric in result["findings"][0]["metrics"]:
        if "accuracy" in metric["name"]:
            assert metric["low"] <= metric["value"] <= metric["high"]
    files = {path.name for path in output.iterdir()}
    assert {
        "config.yaml",
        "manifest.json",
        "metrics.jsonl",
        "findings.json",
        "model.safetensors",
        "README.md",
        "trainer_state.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    } <= files
    config = yaml.safe_load((output / "config.yaml").read_text())
    assert config["loss_type"] == "dpo"
    assert config["beta"] == 0.1
    assert len(json.loads((output / "manifest.json").read_text())["data_hash"]) == 64
    transformers.AutoModelForCausalLM.from_pretrained(output)


def refused(monkeypatch, capsys, *arguments):
    """The error line of a command that is refused, in this process."""
    monkeypatch.setattr(sys, "argv", ["trueline", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    return capsys.readouterr().err


def test_bad_input_is_one_line_and_exit_2(tmp_path, model_folder, pairs_file, monkeypatch, capsys):
    cases = {
        "did you mean 'learning_rate'": {"leraning_rate": "1"},
        "did you mean 'kldo'": {"loss_type": "kldoo"},
        "has no effect on objective 'dpo'": {"simpo_gamma": "1"},
        "max_length must be int": {"max_length": "long"},
        "test_size": {"test_size": "3"},
    }
    for message, changed in cases.items():
        arguments = arguments_for(model_folder, pairs_file, tmp_path / "run", **changed)
        assert message in refused(monkeypatch, capsys, "align", *arguments)
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"prompt": "why ?", "chosen": "yes", "rejected": "no"}\n{"prompt": \n')
    arguments = arguments_for(model_folder, broken, tmp_path / "run")
    assert "error: broken.jsonl:2" in refused(monkeypatch, capsys, "align", *arguments)


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_recipes_are_valid(path, tmp_path):
    run = load_run_config(path, {"output_dir": str(tmp_path), "use_cpu": "true"}, OPTIONS)
    assert bind(run.training.loss_type, run.training.options())
    lora_config(run.model)
    assert run.data.dataset_name


def test_a_trl_dpo_yaml_runs(tmp_path, model_folder, pairs_file):
    """TRL's keys, its name for the loss and its options; only model, data and size are ours."""
    recipe = yaml.safe_load((ROOT / "examples" / "recipes" / "trl_dpo.yaml").read_text())
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        (tmp_path / "data" / f"{split}.jsonl").write_text(pairs_file.read_text())
    recipe |= {"model_name_or_path": str(model_folder), "dataset_name": str(tmp_path / "data")}
    recipe |= {"output_dir": str(tmp_path / "run"), "use_cpu": True, "max_steps": 2}
    recipe |= {"torch_dtype": "float32"}
    file = tmp_path / "dpo.yaml"
    file.write_text(yaml.safe_dump(recipe))
    done = trueline("align", "--config", file)
    assert "padding_free is not needed" in done.stderr.replace("\n", " ")
    assert (tmp_path / "run" / "adapter_model.safetensors").exists()


def test_the_command_line_beats_the_file(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("beta: 0.5\nlearning_rate: 5e-7\n")
    given = ["--beta", "0.2", "--use_cpu", "--loss_type", "dpo"]
    run = load_run_config(file, parse_overrides(given), OPTIONS)
    assert run.training.beta == 0.2
    assert run.training.learning_rate == 5e-7
    with pytest.raises(ConfigError, match="did you mean 'beta'"):
        load_run_config(file, {"betta": "1"}, OPTIONS)


REFUSED = {
    "loss_type is missing": {"beta": 0.1},  # TRL's ORPO, whose file names no loss
    "option 'cpo_alpha' has no effect on objective 'dpo'": {"loss_type": "sigmoid", "cpo_alpha": 1},
    "Train in rounds": {"loss_type": "dpo", "sync_ref_model": True},
    "r_dpo has a price for length": {"loss_type": "dpo", "ld_alpha": 0.5},
    "loss_type: [dpo, sft]": {"loss_type": "dpo", "rpo_alpha": 1.0},
    "max_length bounds prompt and completion": {"loss_type": "dpo", "max_completion_length": 64},
    "accelerate launch --num_processes ...": {"loss_type": "dpo", "num_processes": 8},
    "label_smoothing is the objective's": {"loss_type": "dpo", "label_smoothing_factor": 0.1},
    "max_steps ends a run sooner": {"loss_type": "dpo", "dataloader_drop_last": True},
    "batches are shuffled": {"loss_type": "dpo", "train_sampling_strategy": "sequential"},
    "resume_from_checkpoint: true": {"loss_type": "dpo", "resume_from_checkpoint": "runs/x"},
    "beta must be float": {"loss_type": "dpo", "beta": [0.1, 0.2]},
}


def bound(given):
    run = load_run_config(None, given, OPTIONS)
    return bind(run.training.loss_type, run.training.options())


@pytest.mark.parametrize("message", REFUSED)
def test_what_a_trl_file_asks_for_is_never_passed_over(message):
    with pytest.raises(UserError, match=re.escape(message)):
        bound({**REFUSED[message], "use_cpu": True})


def test_words_that_ask_for_nothing_are_accepted_and_said():
    given = "--loss_type dpo --no_remove_unused_columns --no_gradient_checkpointing --use_cpu"
    given += " --sync_ref_model false --f_divergence_type reverse_kl --pad_to_multiple_of 8"
    run = load_run_config(None, parse_overrides(given.split()), OPTIONS)
    plain = run.training.gradient_checkpointing  # the key's name in older transformers
    assert not getattr(run.training, "activation_checkpointing", plain)
    said = "\n".join(run.notes)
    for name in ("remove_unused_columns", "sync_ref_model", "f_divergence", "pad_to_multiple_of"):
        assert name in said
    weights = ["--loss_type", "dpo", "sft", "--loss_weights", "1", "0.5", "--use_cpu"]
    assert load_run_config(None, parse_overrides(weights)).training.loss_weights == [1.0, 0.5]


@pytest.mark.hh
@pytest.mark.slow
@pytest.mark.skipif(
    not HH.exists(), reason="HH-RLHF harmless-base test file is not beside the project"
)
def test_the_hh_recipes_run(tmp_path):
    """The model is made small and seen through one epoch of few rows; the way is the whole one."""
    base = tmp_path / "base"
    script = [sys.executable, str(ROOT / "examples" / "hh" / "make_model.py")]
    script += ["--output", str(base), "--limit", "200", "--hidden", "48", "--layers", "2"]
    subprocess.run([*script, "--vocabulary", "600", "--data", str(HH)], check=True, cwd=ROOT)
    for name in ("dpo", "kldo"):
        arguments = ["--model_name_or_path", base, "--output_dir", tmp_path / name]
        arguments += ["--max_samples", 200, "--reference_cache", tmp_path / "cache"]
        recipe = f"examples/hh/{name}.yaml"
        done = trueline("align", "--config", recipe, *arguments, "--json")
        findings = {told["name"]: told for told in json.loads(done.stdout)["findings"]}
        finding = findings["held-out"]
        metrics = {metric["name"]: metric for metric in finding["metrics"]}
        assert metrics["reward accuracy, after"]["n"] > 10


def test_i1_i6_interrupted_resumed_and_not_overwritten(tmp_path, model_folder, pairs_file):
    """SIGTERM ends with a checkpoint, exit 143 and the command that goes on; a finished run's
    folder is not taken by another."""
    output = tmp_path / "run"
    arguments = arguments_for(model_folder, pairs_file, output, max_steps=120, save_strategy="no")
    command = [str(Path(sys.executable).with_name("trueline")), "align", *map(str, arguments)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    metrics = output / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and '"loss"' in metrics.read_text()):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 143, said
    assert "interrupted by SIGTERM after step " in said
    (line,) = [text for text in said.splitlines() if text.startswith("go on with: trueline align")]
    done = trueline(*shlex.split(line.removeprefix("go on with: trueline ")), "--json")
    assert json.loads(done.stdout)["steps"] == 120
    rows = [json.loads(row) for row in metrics.read_text().splitlines()]
    steps = [row["step"] for row in rows if "loss" in row]
    assert steps == list(range(1, 121))
    names = {m["name"] for f in json.loads(done.stdout)["findings"] for m in f["metrics"]}
    assert "ranking accuracy, before" in names, "what was measured before is kept (I4)"
    shutil.rmtree(next(output.glob("checkpoint-*")))
    again = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert again.returncode == 2
    assert "holds a run already" in again.stderr
