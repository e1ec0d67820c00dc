"""Where a run's numbers go beside its folder: trackers, through report_to, and the model card."""

import json
import sys
import types

import pytest
import yaml
from transformers.integrations import integration_utils

from report_pages import HOSTILE
from tiny import pair_rows, tiny_llama, tiny_tokenizer
from trueline.config import load_run_config
from trueline.objectives import OBJECTIVES
from trueline.report import log_findings, model_card, report_from_run, scalars, write_model_card
from trueline.report.card import escaped
from trueline.results import Finding, Metric
from trueline.runs.align import run_alignment
from trueline.runs.record import Run


class FakeTracker(types.ModuleType):
    """What transformers' callbacks ask of wandb and trackio, remembering what was logged."""

    __version__ = "0.0.0"
    run = None

    def __init__(self, name):
        super().__init__(name)
        self.logged = []
        self.config = types.SimpleNamespace(update=lambda *_, **__: None)
        space = types.SimpleNamespace(get=lambda: None)
        self.context_vars = types.SimpleNamespace(current_space_id=space, current_project=space)
        self.define_metric = self.watch = self.finish = lambda *_, **__: None

    def init(self, **_):
        self.run = types.SimpleNamespace(summary={}, name="run", _label=lambda **_: None)
        self.config = FakeConfig()
        return self.run

    def log(self, values, **_):
        self.logged.append(values)


class FakeConfig(dict):
    def update(self, values, allow_val_change=False):
        super().update(values)


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    """One short run with all three trackers."""
    folder = tmp_path_factory.mktemp("tracked")
    tiny_llama().save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    rows = "".join(json.dumps(row) + "\n" for row in pair_rows(24))
    (folder / "pairs.jsonl").write_text(rows)
    fakes = {name: FakeTracker(name) for name in ("wandb", "trackio")}
    with pytest.MonkeyPatch.context() as patch:
        for name, fake in fakes.items():
            patch.setitem(sys.modules, name, fake)
            patch.setattr(integration_utils, f"is_{name}_available", lambda: True)
        for name in ("wandb.sdk", "wandb.sdk.lib", "wandb.sdk.lib.config_util"):
            patch.setitem(sys.modules, name, types.ModuleType(name))
        sys.modules[name].ConfigError = ValueError
        run = load_run_config(
            None,
            {
                "model_name_or_path": str(folder / "model"),
                "dataset_name": str(folder / "pairs.jsonl"),
                "output_dir": str(folder / "run"),
                "loss_type": "dpo",
                "test_size": "0.3",
                "max_steps": "2",
                "logging_steps": "1",
                "reference_cache": "none",
                "gradient_checkpointing": "false",
                "use_cpu": "true",
                "save_strategy": "no",
                "disable_tqdm": "true",
                "report_to": ["tensorboard", "wandb", "trackio"],
            },
        )
        run_alignment(run)
    return folder / "run", fakes


def headline(run):
    numbers = scalars(Run(run).own)
    assert "held_out/reward_accuracy_after/low" in numbers
    return numbers


def test_tensorboard_has_the_curves_and_the_findings(tracked):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run, _ = tracked
    found = {}
    for file in (run / "tensorboard").iterdir():
        log = EventAccumulator(str(file))
        log.Reload()
        for tag in log.Tags()["scalars"]:
            found.setdefault(tag, []).extend(event.value for event in log.Scalars(tag))
    assert len(found["train/logps/chosen"]) == 2
    for name, value in headline(run).items():
        assert found[f"train/{name}"] == [pytest.approx(value)]


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_other_trackers_are_given_the_same(tracked, name):
    run, fakes = tracked
    sent = {key: value for values in fakes[name].logged for key, value in values.items()}
    assert "train/loss" in sent
    assert {f"train/{key}": value for key, value in headline(run).items()}.items() <= sent.items()


def test_a_metric_without_a_value_is_not_logged():
    class Trainer:
        def log(self, values):
            raise AssertionError(values)

    log_findings(Trainer(), [Finding("f", "", [Metric("unscored", None)])])


def test_the_runs_own_configuration_runs_again(tracked):
    run, _ = tracked
    again = load_run_config(run / "config.yaml", {"use_cpu": "true"}, OBJECTIVES["dpo"].options)
    assert again.training.max_steps == 2
    command = next(
        block.command
        for section in report_from_run(run).sections
        for block in section.blocks
        if getattr(block, "command", "")
    )
    assert f"--config {run / 'config.yaml'}" in command


def parts(card):
    _, matter, text = card.split("---\n", 2)
    return yaml.safe_load(matter), text


def test_the_card_of_a_real_run(tracked):
    run, _ = tracked
    matter, text = parts((run / "README.md").read_text("utf-8"))
    assert matter == {"library_name": "transformers", "tags": ["trueline", "alignment", "dpo"]}
    assert "| reward accuracy, after |" in text
    assert "held-out examples" in text


def test_the_card_names_hub_ids_and_grows_with_the_findings(tmp_path):
    config = {"model_name_or_path": "org/model", "dataset_name": "org/data", "use_peft": True,
              "loss_type": ["dpo", "sft"]}  # fmt: skip
    matter, text = parts(model_card("m", config, []))
    assert matter["base_model"] == "org/model"
    assert matter["datasets"] == ["org/data"]
    assert matter["library_name"] == "peft"
    assert "Nothing was measured" in text
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "findings.json").write_text(json.dumps([Finding("safety", "Fine.").to_dict()]))
    assert "## Safety" in write_model_card(tmp_path).read_text("utf-8")


def test_hostile_names_stay_text_in_the_card():
    evil = f"{HOSTILE}\n---\nlicense: mit\n| a | b |"
    config = {"model_name_or_path": evil, "dataset_name": evil, "loss_type": evil}
    finding = Finding(evil, evil, [Metric(evil, 0.5)])
    matter, text = parts(model_card(evil, config, [finding]))
    assert set(matter) == {"library_name", "tags"}
    assert matter["tags"][-1] == " ".join(evil.split())
    assert "<script" not in text.replace("\\<script", "")
    assert text.count("\n---") == 0
    (row,) = [line for line in text.splitlines() if line.startswith("| ") and "0.5" in line]
    assert row.replace("\\|", "").count("|") == 4
    assert escaped("a_b*") == "a\\_b\\*"
