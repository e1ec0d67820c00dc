"""Tasks of lm-eval from local files, end to end; skipped where the extra is not installed."""

import json
import sys

import pytest
import torch
import yaml

from evaluate_server import chat_server
from tiny import tiny_llama, tiny_tokenizer
from trueline.errors import UserError
from trueline.evaluation.utility import UTILITIES
from trueline.evaluation.utility.lm_eval import _metric, _until
from trueline.runs.evaluate import evaluate
from trueline.stats import rate

COLORS = ("blue", "green", "red")
ROWS = [
    {"question": f"what color is the {thing} ?", "answer": i % 3}
    for i, thing in enumerate(("sky", "grass", "sea", "sky sea", "sea grass", "one"))
]


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    """A choice by log-probs and a task that generates, both of questions in local files."""
    pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), "utf-8")
    shared = {
        "dataset_path": "json", "test_split": "test", "doc_to_text": "{{question}}",
        "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}},
    }  # fmt: skip
    choice = {
        "task": "colors", "output_type": "multiple_choice", "doc_to_choice": list(COLORS),
        "doc_to_target": "answer", "metric_list": [{"metric": "acc"}], **shared,
    }  # fmt: skip
    said = {
        "task": "said", "output_type": "generate_until", "doc_to_target": "the sea",
        "generation_kwargs": {"until": ["."], "max_gen_toks": 8},
        "metric_list": [{"metric": "exact_match"}], **shared,
    }  # fmt: skip
    for task in (choice, said):
        (folder / f"{task['task']}.yaml").write_text(yaml.safe_dump(task), "utf-8")
    return folder


def test_a_task_of_local_files_in_the_run_directory(tasks, tmp_path):
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    how = {"utility": f"lm-eval=colors+said,include={tasks}", "output": str(tmp_path / "run")}
    run = evaluate(tmp_path / "model", **how)
    right = []
    for row in ROWS:  # the likeliest of the three words, by a plain forward
        ids = tokenizer(row["question"], return_tensors="pt").input_ids
        with torch.no_grad():
            logits = model(ids).logits[0, -1, tokenizer.convert_tokens_to_ids(list(COLORS))]
        right.append(int(logits.argmax()) == row["answer"])
    finding = run.finding("lm-eval")
    assert finding["colors, acc"] == rate("colors, acc", right)
    assert finding["said, exact_match"].n == len(ROWS)
    log = [json.loads(line) for line in (run.path / "lm-eval.jsonl").read_text().splitlines()]
    scores = [row["scores"]["acc"] for row in log if row["task"] == "colors"]
    assert scores == [float(one) for one in right]
    kept = (run.path / "lm-eval.jsonl").stat().st_mtime_ns
    again = evaluate(tmp_path / "model", **how)
    assert again.finding("lm-eval").to_dict() == finding.to_dict()
    assert (run.path / "lm-eval.jsonl").stat().st_mtime_ns >= kept


def test_a_server_is_asked_to_generate_and_tells_no_log_probs(tasks, tmp_path):
    pytest.importorskip("openai")
    with chat_server(lambda messages: "the sea. it is blue") as server:
        how = {"base_url": server.url, "output": str(tmp_path / "run")}
        run = evaluate("tiny", utility=f"lm-eval=said,include={tasks},chat=true", **how)
        assert run.finding("lm-eval")["said, exact_match"].value == 1.0
        assert len(server.requests) == len(ROWS)
        with pytest.raises(UserError, match="which a chat server does not tell"):
            evaluate("tiny", utility=f"lm-eval=colors,include={tasks},chat=true", **how)
        with pytest.raises(UserError, match="say chat=true"):
            evaluate("tiny", utility=f"lm-eval=said,include={tasks}", **how)


def test_what_cannot_be_measured_is_refused(tasks, tmp_path, monkeypatch):
    from lm_eval.tasks import TaskManager

    only_own = TaskManager(include_path=str(tasks), include_defaults=False)
    monkeypatch.setattr("lm_eval.tasks.TaskManager", lambda **_: only_own)  # its own take seconds
    with pytest.raises(UserError, match=r"knows no task colours \(nor in"):
        UTILITIES["lm-eval"]("colours", include=str(tasks))
    with pytest.raises(UserError, match="is no folder of tasks"):
        UTILITIES["lm-eval"]("colors", include=str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="limit must be at least 1"):
        UTILITIES["lm-eval"]("colors", include=str(tasks), limit=0)


def test_without_the_extra_its_name_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(UserError, match=r"pip install 'trueline\[lm-eval\]'"):
        UTILITIES["lm-eval"]("arc_easy")


def test_intervals_are_wilsons_or_the_standard_errors():
    rows = [{"task": "t", "filter": "none", "scores": {"acc": one}} for one in (1.0, 0.0, 1.0)]
    values = {"acc,none": 2 / 3, "acc_stderr,none": 0.33, "f1,none": 0.5, "f1_stderr,none": 0.1}
    assert _metric("t", "acc,none", values, rows) == rate("t, acc", 2, 3)
    f1 = _metric("t", "f1,none", values, [])
    assert (f1.low, f1.high) == pytest.approx((0.5 - 0.196, 0.5 + 0.196), abs=1e-4)
    assert _metric("t", "f1,none", {"f1,none": 0.5, "f1_stderr,none": "N/A"}, []).low is None
    assert _until("one. two; three", [";", "."]) == "one"
