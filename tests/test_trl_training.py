"""One YAML file, trained by TRL 1.16 and by Trueline: the same weights after eight steps, or a
difference that is named.

The batch is the whole data set, so that neither's order of rows matters. Runs where TRL is
installed (``pip install trl==1.16.0``).
"""

import pytest
import torch
import transformers
import yaml

from tiny import pair_rows, tiny_llama, tiny_tokenizer
from trueline import AlignmentTrainer
from trueline.config import load_run_config
from trueline.objectives import OBJECTIVES
from trueline.trl import LOSSES

trl = pytest.importorskip("trl", reason="TRL is not installed: pip install trl==1.16.0")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not trl.__version__.startswith("1.16"), reason="written against TRL 1.16"),
]

OPTIONS = {name for spec in OBJECTIVES.values() for name in spec.options}
COMMON = {
    "max_steps": 8, "learning_rate": 0.1, "optim": "sgd", "lr_scheduler_type": "constant",
    "per_device_train_batch_size": 8, "gradient_checkpointing": False, "bf16": False,
    "use_cpu": True, "report_to": "none", "save_strategy": "no", "disable_tqdm": True,
    "logging_steps": 1,
}  # fmt: skip
DPO = [
    *({"loss_type": name} for name in LOSSES["dpo"]),
    {"loss_type": "sigmoid", "beta": 0.5},
    {"loss_type": "robust", "label_smoothing": 0.1},
    {"loss_type": "exo_pair", "label_smoothing": 0.01},
    {"loss_type": "aot", "label_smoothing": 0.1},
    {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]},
    {"loss_type": ["sigmoid", "ipo"]},
    {"loss_type": ["hinge", "sppo_hard", "apo_down"], "loss_weights": [0.8, 0.2, 1.0]},
    {"loss_type": ["sigmoid_norm", "sft"]},
]
ROWS = [{**row, "prompt": row["prompt"] + " "} for row in pair_rows(8)]
LABELED = [
    {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
    for row, side in zip(ROWS[1:3], ("chosen", "rejected"), strict=True)
]
WRITTEN = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in ROWS]
CASES = [
    *(("dpo", options, ROWS) for options in DPO if options["loss_type"] != "exo_pair"
      or "label_smoothing" in options),
    ("kto", {}, LABELED),
    ("kto", {"desirable_weight": 1.5, "undesirable_weight": 0.5}, LABELED),
    ("kto", {"loss_type": "apo_zero_unpaired"}, LABELED),
    *(("cpo", {"loss_type": name}, ROWS) for name in LOSSES["cpo"]),
    ("cpo", {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.0, "cpo_alpha": 0.0}, ROWS),
    ("orpo", {}, ROWS),
    ("sft", {}, WRITTEN),
]  # fmt: skip
DIFFERENT = {"bco_pair", "orpo"}
"""Losses whose difference TRL's dialect names: LOSSES says what it is."""


def classes(script):
    if script in ("cpo", "orpo"):
        module = __import__(f"trl.experimental.{script}", fromlist=["x"])
        return getattr(module, f"{script.upper()}Trainer"), getattr(
            module, f"{script.upper()}Config"
        )
    return getattr(trl, f"{script.upper()}Trainer"), getattr(trl, f"{script.upper()}Config")


def rewards_at_once(trainer):
    """What the first step logs of rewards."""
    first = next(log for log in trainer.state.log_history if "rewards/chosen" in log)
    return {key: value for key, value in first.items() if key.startswith("rewards/")}


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def theirs(script, options, rows, folder):
    import datasets

    kind, settings = classes(script)
    given = dict(options)
    if script == "dpo" and isinstance(given.get("loss_type"), str):
        given["loss_type"] = [given["loss_type"]]
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    trainer = kind(
        model,
        args=settings(output_dir=str(folder / "theirs"), **{**COMMON, **given}),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tiny_tokenizer(chat=False),
    )
    trainer.train()
    return trainer


def ours(script, options, rows, folder):
    file = folder / "file.yaml"
    file.write_text(yaml.safe_dump({**COMMON, **options, "output_dir": str(folder / "ours")}))
    run = load_run_config(file, {"reference_cache": "none"}, OPTIONS, script=script)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    trainer = AlignmentTrainer(
        model, args=run.training, train_dataset=rows, processing_class=tiny_tokenizer(chat=False)
    )
    trainer.train()
    return trainer


def name_of(case):
    script, options, _ = case
    return " ".join([script, *(f"{k}={v}" for k, v in options.items())])


@pytest.mark.parametrize("case", CASES, ids=map(name_of, CASES))
def test_one_yaml_trains_the_same_weights_in_eight_steps(case, tmp_path):
    script, options, rows = case
    tiny_llama().save_pretrained(tmp_path)
    start = weights(transformers.AutoModelForCausalLM.from_pretrained(tmp_path))
    a, b = (weights(train(script, options, rows, tmp_path).model) for train in (theirs, ours))
    ratio = float((a - b).norm() / (a - start).norm())
    if DIFFERENT & {script, str(options.get("loss_type"))}:
        assert ratio > 1e-4, "the difference is gone: take it off the list"
    else:
        assert ratio < 1e-5, ratio


REFERENCE_FREE = [case for case in CASES if case[0] in ("cpo", "orpo")]


@pytest.mark.parametrize("case", REFERENCE_FREE, ids=map(name_of, REFERENCE_FREE))
def test_r10_reference_free_objectives_log_trls_rewards(case, tmp_path):
    """Before the first step's update both see the same weights, so every figure agrees."""
    tiny_llama().save_pretrained(tmp_path)
    a, b = (rewards_at_once(train(*case, tmp_path)) for train in (theirs, ours))
    assert len(a) == 4
    if case[1].get("loss_type") == "hinge":  # listed: its rewards are log-probs here
        b = {key: x if key == "rewards/accuracies" else 0.1 * x for key, x in b.items()}
    assert a == pytest.approx({key: b[key] for key in a}, rel=1e-4)
