"""More than one process: one process's update, or one line that says why not."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from trueline.errors import UserError
from trueline.training.distributed import check_even, check_processes


def fake(world=2, *, deepspeed=False, **fsdp):
    """What the checks read of a trainer."""
    plugin = SimpleNamespace(
        fsdp_version=2, cpu_ram_efficient_loading=False, state_dict_type="FULL_STATE_DICT"
    )
    plugin.__dict__.update(fsdp)
    args = SimpleNamespace(
        world_size=world,
        pair_weighting=None,
        entanglement_steps=0,
        max_tokens_per_micro_batch=None,
    )
    return SimpleNamespace(
        args=args,
        is_deepspeed_enabled=deepspeed,
        is_fsdp_enabled=not deepspeed,
        accelerator=SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin)),
        plan=SimpleNamespace(batch_size=8),
    )


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        (fake(deepspeed=True), "DeepSpeed is not held"),
        (fake(fsdp_version=1), "fsdp_version: 2"),
        (fake(cpu_ram_efficient_loading=True), "only the first process has the weights"),
        (fake(state_dict_type="SHARDED_STATE_DICT"), "FULL_STATE_DICT"),
        (fake(world=1), "2 processes were started"),
    ],
)
def test_what_does_not_hold_is_refused(trainer, message, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=message):
        check_processes(trainer)


def test_d4_uneven_work_is_refused():
    trainer = fake()
    check_even(trainer, [0] * 16, [[0] * 4])
    for rows, evals in ((27, []), (16, [[0] * 5])):
        with pytest.raises(UserError, match="unequal work"):
            check_even(trainer, [0] * rows, evals)


def test_d8_bare_torchrun_on_a_cpu_meets():
    code = (
        "from trueline import AlignmentConfig; "
        "args = AlignmentConfig(output_dir='unused'); print(args.world_size, args.device.type)"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    done = subprocess.run(
        [*command, "--no-python", sys.executable, "-c", code],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["2", "cpu"] * 2, done.stderr
