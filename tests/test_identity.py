"""A run has an identity: what is resumed is the run that was begun, whole, or it is refused."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from peft import LoraConfig

from test_training import SCRIPT, StopAt, trainer, weights
from tiny import pair_rows, tiny_llama
from trueline.errors import UserError
from trueline.files import SEAL
from trueline.training import Interrupted, checkpoints, last_checkpoint

BEGUN = {"save_strategy": "steps", "save_steps": 2, "max_steps": 8, "loss_type": "dpo"}


def begin(folder, model=None, rows=None, **changes):
    return trainer(folder, model or tiny_llama(), rows or pair_rows(12), **{**BEGUN, **changes})


@pytest.fixture(scope="module")
def broken_off(tmp_path_factory):
    """A run of 8 steps that was broken off after 5, with checkpoints at 2 and 4."""
    folder = tmp_path_factory.mktemp("run") / "dpo"
    run = begin(folder)
    run.add_callback(StopAt(5))
    run.train()
    return folder


@pytest.fixture
def copied(broken_off, tmp_path):
    return shutil.copytree(broken_off, tmp_path / "dpo")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    run = begin(tmp_path_factory.mktemp("whole") / "dpo")
    run.train()
    return weights(run.model)


SWAPPED = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in pair_rows(12)]
REFUSED = {
    "objective": ({"loss_type": "ipo"}, "objective.name: dpo before, ipo now"),
    "beta": ({"beta": 0.2}, "objective.beta: 0.1 before, 0.2 now"),
    "option": ({"label_smoothing": 0.1}, "objective.label_smoothing"),
    "seed": ({"seed": 7}, "seed: 42 before, 7 now"),
    "rate": ({"learning_rate": 1e-3}, "learning_rate: 0.01 before, 0.001 now"),
    "schedule": ({"lr_scheduler_type": "cosine"}, "lr_scheduler_type: linear before"),
    "warm-up": ({"warmup_steps": 3}, "warmup_steps"),
    "decay": ({"weight_decay": 0.1}, "weight_decay: 0.0 before, 0.1 now"),
    "clip": ({"max_grad_norm": 0.5}, "max_grad_norm: 1.0 before, 0.5 now"),
    "batch": ({"per_device_train_batch_size": 2}, "effective batch: 4 before, 2 now"),
    "length": ({"max_length": 9}, "max_length: 1024 before, 9 now"),
    "labels": ({"rows": SWAPPED}, "data: "),
    "rows": ({"rows": pair_rows(11)}, "data: "),
    "base": ({"model": 1}, "model.policy: "),
    "adapter": ({"peft_config": LoraConfig(r=2, target_modules="all-linear")}, "adapter.default"),
    "fewer steps": ({"max_steps": 6}, "max_steps: 8 before, 6 now"),
    "precision": ({"bf16": True}, "bf16: false before, true now"),
    "remedy": ({"token_mask": "difference"}, "token_mask: none before, difference now"),
    "dropout": ({"disable_dropout": False}, "disable_dropout"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_i2_a_resumed_run_refuses_each_difference_by_name(name, copied):
    changes, message = REFUSED[name]
    changes = dict(changes)
    if "model" in changes:
        changes["model"] = tiny_llama(seed=changes["model"])
    with pytest.raises(UserError) as refused:
        begin(copied, **changes).train(resume_from_checkpoint=True)
    assert message in str(refused.value)
    assert "with --overwrite" in str(refused.value)


def test_i2_what_may_change_is_taken_and_said(copied, uninterrupted, capsys):
    run = begin(
        copied,
        save_steps=4,
        logging_steps=2,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        disable_tqdm=False,
    )
    run.train(resume_from_checkpoint=True)
    said = capsys.readouterr().err
    assert "resumed with another save_steps: 2 before, 4 now" in said
    assert "resumed with another logging_steps: 1 before, 2 now" in said
    moved = (weights(tiny_llama()) - uninterrupted).norm()
    assert (weights(run.model) - uninterrupted).norm() <= 1e-5 * moved
    longer = begin(copied, max_steps=10)
    longer.train(resume_from_checkpoint=True)
    assert longer.state.global_step == 10


def test_i2_every_argument_is_a_fact_unless_it_is_named(copied):
    """One that comes with a later transformers is compared before anybody thinks of it."""
    run = begin(copied)
    facts = checkpoints.identity(run, {}).facts
    names = {f for f, field in run.args.__dataclass_fields__.items() if field.init}
    assert names - set(facts) <= checkpoints.NO_PART
    assert not checkpoints.NO_PART & set(checkpoints.FREE)
    strict = names - checkpoints.NO_PART - set(checkpoints.FREE)
    assert {"learning_rate", "optim", "adam_beta1", "warmup_steps", "neftune_noise_alpha"} <= strict


def test_i1_a_new_run_refuses_a_used_folder_and_resumes_no_other(broken_off, copied, tmp_path):
    """DPO was in the folder; IPO on swapped labels is begun there, and later resumed."""
    with pytest.raises(UserError, match=r"holds a run already \(checkpoint-4\); go on with it by"):
        begin(copied, loss_type="ipo", rows=SWAPPED).train()
    assert sorted(p.name for p in copied.iterdir()) == sorted(p.name for p in broken_off.iterdir())
    run = begin(copied, loss_type="ipo", rows=SWAPPED, overwrite=True)
    run.add_callback(StopAt(3))
    run.train()
    aside = tmp_path / "dpo.old-1"
    assert last_checkpoint(aside).name == "checkpoint-4"
    assert last_checkpoint(copied).name == "checkpoint-2"
    shutil.rmtree(copied / "checkpoint-2")
    shutil.copytree(aside / "checkpoint-4", copied / "checkpoint-4")  # the other run's work
    with pytest.raises(UserError, match=r"objective.name: dpo before, ipo now"):
        begin(copied, loss_type="ipo", rows=SWAPPED).train(resume_from_checkpoint=True)


def test_i4_a_step_stands_once_in_the_metrics(copied):
    with (copied / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "loss": 0.6931')  # torn by a kill
    begin(copied).train(resume_from_checkpoint=True)
    rows = [json.loads(line) for line in (copied / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 9))


FILES = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth")
FILES += ("trainer_state.json", "identity.json", "config.json", SEAL)


def damage(path, kind):
    content = bytearray(path.read_bytes())
    if kind == "gone":
        path.unlink()
    elif kind == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        content[random.Random(path.name).randrange(len(content))] ^= 4
        path.write_bytes(content)


@pytest.mark.parametrize("kind", ["gone", "cut", "flipped"])
@pytest.mark.parametrize("name", FILES)
def test_i5_damage_is_seen_and_passed_over(name, kind, copied, caplog):
    damage(copied / "checkpoint-4" / name, kind)
    assert last_checkpoint(copied).name == "checkpoint-2"
    assert "checkpoint-4 is passed over: " in caplog.text
    with pytest.raises(UserError, match=r"checkpoint-4 cannot be resumed from: "):
        checkpoints.check_whole(copied / "checkpoint-4")


def test_i5_resumed_from_the_one_before_it_ends_with_the_same_weights(copied, uninterrupted):
    damage(copied / "checkpoint-4" / "optimizer.pt", "gone")
    run = begin(copied)
    run.train(resume_from_checkpoint=True)
    assert torch.equal(weights(run.model), uninterrupted)
    assert last_checkpoint(copied).name == "checkpoint-8"
    for path in checkpoints.checkpoints(copied):
        damage(path / "optimizer.pt", "cut")
    with pytest.raises(UserError, match=r"no whole checkpoint in .*checkpoint-8: optimizer.pt has"):
        begin(copied).train(resume_from_checkpoint=True)


def test_i2_a_run_resumed_at_its_end_takes_no_further_step(tmp_path):
    """Killed while the model was written, behind the last checkpoint."""
    whole = begin(tmp_path, lr_scheduler_type="constant")
    whole.train()
    again = begin(tmp_path, lr_scheduler_type="constant")
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 8
    assert torch.equal(weights(again.model), weights(whole.model))
    assert [row["step"] for row in again.run.rows if "loss" in row] == list(range(1, 9))


def test_older_checkpoints_go_only_when_the_newest_is_sealed(tmp_path):
    run = begin(tmp_path, save_total_limit=1)
    run.train()
    assert [path.name for path in checkpoints.checkpoints(tmp_path)] == ["checkpoint-8"]
    for step in (10, 12):
        (tmp_path / f"checkpoint-{step}").mkdir()
    checkpoints.rotate(str(tmp_path), 2, str(tmp_path / "checkpoint-8"))
    names = [path.name for path in checkpoints.checkpoints(tmp_path)]
    assert names == ["checkpoint-8", "checkpoint-12"]


def test_i6_a_signal_ends_with_a_checkpoint_of_the_whole_step(tmp_path, uninterrupted):
    class SignalAt(StopAt):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == self.step:
                os.kill(os.getpid(), signal.SIGTERM)

        def on_step_end(self, *_, **__):
            pass

    run = begin(tmp_path, save_strategy="no")
    run.add_callback(SignalAt(4))
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted) as stopped:
        run.train()
    assert (stopped.value.number, stopped.value.step) == (signal.SIGTERM, 5)
    assert stopped.value.checkpoint.name == "checkpoint-5"
    assert signal.getsignal(signal.SIGTERM) is before
    resumed = begin(tmp_path, save_strategy="no")
    resumed.train(resume_from_checkpoint=True)
    assert torch.equal(weights(resumed.model), uninterrupted)


def test_i7_one_training_at_a_time(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), str(tmp_path), "dpo", "--steps", "400", "--slow"]
    other = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
    try:
        while not (tmp_path / "dpo" / ".lock").exists() and other.poll() is None:
            time.sleep(0.05)
        with pytest.raises(UserError, match=f"in use by process {other.pid} on "):
            begin(tmp_path / "dpo").train()
    finally:
        other.kill()
        other.wait()
