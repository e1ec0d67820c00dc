"""The run directory: one reader and writer, and a run made in Python is a run (I13, I15)."""

import ast
import json
import re
from pathlib import Path

import pytest
import yaml

from tiny import pair_rows, tiny_llama, tiny_tokenizer
from trueline import AlignmentConfig, AlignmentTrainer, load_examples
from trueline.errors import UserError
from trueline.results import Finding, Metric
from trueline.runs import record
from trueline.runs.record import Key, Run

SOURCE = Path(record.__file__).parents[1]
FILES = {v for k, v in vars(record).items() if k.isupper() and isinstance(v, str)} - {record.CARD}


def strings(tree):
    """Strings of a module that are no docstring, with their line."""
    said = set()
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        for part in body if isinstance(body, list) else ():
            if isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant):
                said.add(id(part.value))
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in said:
            yield node.lineno, node.value


def test_i15_no_other_module_names_a_file_of_the_run():
    named = [
        f"{path.relative_to(SOURCE)}:{line} {text!r}"
        for path in sorted(SOURCE.rglob("*.py"))
        if path != SOURCE / "runs" / "record.py"
        for line, text in strings(ast.parse(path.read_text("utf-8")))
        if re.search(rf"(?<![\w.])({'|'.join(map(re.escape, FILES))})", text)
    ]
    assert not named


def test_i15_names_of_findings_that_two_parts_know_are_keys():
    shared = {key.value for key in Key if " " in key.value}
    named = [
        f"{path.relative_to(SOURCE)}:{line} {text!r}"
        for path in sorted(SOURCE.rglob("*.py"))
        if path != SOURCE / "runs" / "record.py"
        for line, text in strings(ast.parse(path.read_text("utf-8")))
        if text in shared
    ]
    assert not named


def test_what_is_written_is_read_back_and_replaced_by_key(tmp_path):
    run = Run.create(tmp_path / "run")
    run.write_config({"loss_type": "dpo", "beta": 0.1})
    run.write_manifest(seed=1)
    run.log({"step": 1, "loss": 0.5})
    run.write_samples([{"prompt": "p", "answer": "a"}])
    run.save([Finding(Key.HELD_OUT, "first"), Finding("other", "stays")])
    run.keep([Finding(Key.VERDICT, "so"), Finding(Key.HELD_OUT, "second", (Metric("m", 1.0),))])
    again = Run.open(run.path).read()
    assert again.config == {"loss_type": "dpo", "beta": 0.1}
    assert again.manifest["seed"] == 1
    assert [row["loss"] for row in again.rows] == [0.5]
    assert [f.name for f in again.findings] == [Key.VERDICT, "other", Key.HELD_OUT]
    assert again.finding(Key.HELD_OUT)["m"].value == 1.0
    assert [row["answer"] for row in again.samples] == ["a"]
    assert again.missing == []
    assert not list(run.path.glob(".*part"))


def test_what_is_absent_or_broken_is_named_and_left_out(tmp_path):
    (tmp_path / record.CONFIG).write_text("{", "utf-8")
    (tmp_path / record.METRICS).write_text('{"step": 1}\n{"st', "utf-8")
    run = Run.open(tmp_path).read()
    assert run.config == {}
    assert len(run.rows) == 1
    assert run.missing == [
        "config.yaml cannot be read",
        "manifest.json is not there",
        "metrics.jsonl: 1 lines cannot be read and were left out",
        "findings.json is not there",
        "samples.jsonl is not there",
    ]
    (tmp_path / record.FINDINGS).write_text('[{"nam', "utf-8")
    with pytest.raises(UserError, match=r"findings.json cannot be read .*; measure it again"):
        Run(tmp_path).keep([])
    with pytest.raises(UserError, match="is no run directory"):
        Run.open(tmp_path / "nothing")


def test_i13_a_training_in_python_is_a_run(tmp_path):
    """Configuration, manifest, log and findings are as `trueline align` writes them."""
    rows = pair_rows(6)
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    trainer = AlignmentTrainer(
        tiny_llama(),
        args=AlignmentConfig(
            output_dir=str(tmp_path / "run"), loss_type="ipo", beta=0.2, max_steps=2,
            per_device_train_batch_size=2, logging_steps=1, save_strategy="no", report_to="none",
            gradient_checkpointing=False, use_cpu=True, disable_tqdm=True,
            reference_cache="none",
        ),
        train_dataset=load_examples(data),
        eval_dataset=load_examples(data),
        processing_class=tiny_tokenizer(),
    )  # fmt: skip
    trainer.begin()
    trainer.evaluate()
    trainer.train()
    trainer.evaluate()
    run = Run.open(trainer.args.output_dir).read()
    assert run.config["loss_type"] == "ipo"
    assert run.config["beta"] == 0.2
    assert run.config["max_steps"] == 2
    assert run.config["dataset_name"] == run.config["eval_dataset_name"] == str(data)
    assert run.manifest["train_examples"] == 6
    assert run.manifest["data_hash"]
    assert [row["step"] for row in run.rows if "loss" in row] == [1, 2]
    found = run.finding(Key.HELD_OUT)
    assert {"ranking accuracy, before", "ranking accuracy, after"} <= {
        m.name for m in found.metrics
    }
    assert yaml.safe_load((run.path / record.CONFIG).read_text("utf-8")) == run.config
