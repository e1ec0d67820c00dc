"""More than one process: what is known to give one process's update, and what is refused."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

from trueline.errors import UserError
from trueline.training.coupling import world_size


def check_processes(trainer: Any) -> None:
    """Refuse what would train other weights than one process does, or would not end.

    Raises:
        UserError: processes that do not know of each other; an engine that is not held to the
            update of one process.
    """
    args = trainer.args
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if max(started, world_size()) != args.world_size:
        raise UserError(
            f"{max(started, world_size())} processes were started and each would train all rows "
            f"alone (accelerate counts {args.world_size}); start them with `accelerate launch`, or "
            "set use_cpu: true where there is no GPU"
        )
    if trainer.is_deepspeed_enabled:
        raise UserError(
            "DeepSpeed is not held to one process's update yet; take FSDP (distributed_type: FSDP, "
            "fsdp_version: 2), which shards the same, or plain data parallelism"
        )
    if trainer.is_fsdp_enabled:
        _check_fsdp(trainer)


def _check_fsdp(trainer: Any) -> None:
    args, plugin = trainer.args, trainer.accelerator.state.fsdp_plugin
    if plugin.fsdp_version != 2:
        raise UserError("FSDP 1 is not held to one process's update; set fsdp_version: 2")
    if plugin.cpu_ram_efficient_loading:
        raise UserError(
            "with fsdp_cpu_ram_efficient_loading only the first process has the weights that the "
            "reference's log-probs are computed from; set it to false"
        )
    if "SHARDED" in str(plugin.state_dict_type):
        raise UserError(
            "fsdp_state_dict_type: SHARDED_STATE_DICT ends without a whole model; set it to "
            "FULL_STATE_DICT"
        )
    if args.pair_weighting is not None or args.entanglement_steps:
        raise UserError(
            "pair_weighting and entanglement_steps read each weight's gradient whole, which FSDP "
            "spreads over processes; leave them out or train without FSDP"
        )
    if args.max_tokens_per_micro_batch is not None and args.world_size > 1:
        raise UserError(
            "max_tokens_per_micro_batch gives processes different numbers of forward passes, for "
            "which FSDP waits for ever; cut by per_device_train_batch_size alone"
        )


def check_even(trainer: Any, trees: Sequence[Any], evals: Iterable[Sequence[Any]]) -> None:
    """Refuse row counts that give processes different numbers of forward passes under FSDP.

    Raises:
        UserError: rows that do not divide.
    """
    if not trainer.is_fsdp_enabled or trainer.args.world_size == 1:
        return
    size, world = trainer.plan.batch_size, trainer.args.world_size
    for kind, rows, unit in (("training", trees, size), *(("held-out", e, world) for e in evals)):
        if len(rows) % unit:
            raise UserError(
                f"FSDP waits for ever where processes have unequal work: {len(rows)} {kind} "
                f"examples do not divide by {unit}; max_samples or test_size can make them"
            )
