"""More than one process: what FSDP and DeepSpeed need beyond plain data parallelism.

The engines are accelerate's. What they are not asked for is accumulation: the step engine walks
through the micro-batches, so it also says when gradients meet and when the optimizer may step.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerState
from transformers.trainer import SCHEDULER_NAME, TRAINER_STATE_NAME

from trueline.errors import Unfinished, UserError
from trueline.training.coupling import world_size
from trueline.training.pieces import OPTIMIZERS, load_pieces, save_pieces


def check_processes(trainer: Any) -> None:
    """Refuse what would train other weights than one process does, or would not end.

    Raises:
        UserError: processes that do not know of each other; an engine or an option that is not
            held to the update of one process.
    """
    args = trainer.args
    started = max(int(os.environ.get("WORLD_SIZE", "1")), world_size())
    if started != args.world_size:
        raise UserError(
            f"{started} processes were started and each would train all rows alone (accelerate "
            f"counts {args.world_size}); start them with `accelerate launch`, or set use_cpu: true "
            "where there is no GPU"
        )
    quantized = getattr(trainer.model.config, "quantization_config", None)
    if args.world_size > 1 and getattr(quantized, "load_in_8bit", False):
        raise UserError(
            "load_in_8bit rounds a row by the rows that stand beside it, so several processes "
            "train other weights than one; take load_in_4bit, or one process"
        )
    if not trainer.sharded:
        return
    for name in ("pair_weighting", "entanglement_steps"):
        if getattr(args, name):
            raise UserError(
                f"{name} reads each weight's gradient whole, which FSDP and DeepSpeed spread over "
                "processes; leave it out, or train without them"
            )
    if trainer.adapted:
        raise UserError(
            "training an adapter further keeps a copy of it as the reference, which is not held "
            "to one process's update with FSDP and DeepSpeed; merge it into its base first"
        )
    spread = trainer.is_fsdp_enabled or trainer.accelerator.state.deepspeed_plugin.zero_stage == 3
    if spread and quantized is not None:
        raise UserError(
            "quantized weights are not spread over processes; train QLoRA in one, as plain data "
            "parallel or with ZeRO-1 or 2, or leave load_in_4bit out"
        )
    optimizer = str(getattr(args.optim, "value", args.optim))
    if optimizer not in OPTIMIZERS:
        raise UserError(
            f"optim: {optimizer} is not held to one process's update with FSDP and DeepSpeed; take "
            f"one of {', '.join(OPTIMIZERS)}"
        )
    if args.fp16 and trainer.is_deepspeed_enabled:
        raise UserError(
            "DeepSpeed scales the losses of fp16 in a way of its own, which is not held to one "
            "process's update; train with bf16"
        )
    plugin = trainer.accelerator.state.fsdp_plugin if trainer.is_fsdp_enabled else None
    if plugin is not None and plugin.fsdp_version != 2:
        raise UserError("FSDP 1 is not held to one process's update; set fsdp_version: 2")


def check_wrapped(trainer: Any) -> None:
    """Refuse a DeepSpeed file that says something else than the configuration.

    Raises:
        UserError: it clips gradients at another norm.
    """
    if not trainer.is_deepspeed_enabled:
        return
    theirs, ours = trainer.deepspeed.gradient_clipping(), trainer.args.max_grad_norm
    if theirs != ours:
        raise UserError(
            f"the DeepSpeed configuration clips gradients at {theirs} and max_grad_norm is {ours}; "
            'set its gradient_clipping to "auto", or both to one number'
        )


@contextmanager
def unsynced(trainer: Any, model: Any) -> Iterator[None]:
    """Around every micro-batch but the last: plain data parallelism lets gradients meet once a
    step. FSDP's meet every time and stay sharded, which is what it is chosen for."""
    if trainer.is_deepspeed_enabled:
        model.set_gradient_accumulation_boundary(False)
        try:
            yield
        finally:
            model.set_gradient_accumulation_boundary(True)
    elif trainer.is_fsdp_enabled:
        yield
    else:
        with trainer.accelerator.no_sync(model):
            yield


def back(trainer: Any) -> Callable[[Tensor], Any]:
    """What goes backward: accelerate's, but for DeepSpeed its own, as accelerate's would also let
    the optimizer step after every micro-batch."""
    if not trainer.is_deepspeed_enabled:
        return trainer.accelerator.backward
    engine = trainer.deepspeed

    def backward(loss: Tensor) -> None:
        engine.backward(loss, scale_wrt_gas=False)

    engine.set_gradient_accumulation_boundary(True)
    return backward


def kept_copy(model: nn.Module) -> nn.Module:
    """The policy as it starts, kept as the reference.

    Raises:
        UserError: DeepSpeed has already spread the weights while they were loaded.
    """
    if any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        raise UserError(
            "zero3_init_flag spreads the weights while they are loaded, so no copy of them can be "
            "kept as the reference; name it in reference_model_name_or_path, leave "
            "precompute_ref_log_probs on, or set zero3_init_flag: false"
        )
    return copy.deepcopy(model)


def shard_frozen(trainer: Any, model: nn.Module) -> Any:
    """A reference model spread over processes as the policy is; what to call instead of it."""
    accelerator = trainer.accelerator
    if trainer.is_fsdp_enabled:
        from accelerate.utils import fsdp2_prepare_model

        return fsdp2_prepare_model(accelerator, model)
    plugin = accelerator.state.deepspeed_plugin
    if plugin.zero_stage < 3:  # whose weights are whole on every process
        return model.to(accelerator.device)
    import deepspeed

    config = copy.deepcopy(plugin.deepspeed_config)
    for key in ("optimizer", "scheduler"):
        config.pop(key, None)
    engine, *_ = deepspeed.initialize(model=model, config=config)
    engine.eval()  # which gives nothing back
    return engine


def save_spread(trainer: Any, folder: Path) -> None:
    """What a checkpoint needs beside the model: every process's pieces, and the schedule."""
    save_pieces(trainer, folder)
    if trainer.args.should_save:
        torch.save(trainer.lr_scheduler.state_dict(), folder / SCHEDULER_NAME)


def load_spread(trainer: Any, folder: Path) -> None:
    """Go on from what :func:`save_spread` wrote, with the model wrapped.

    Raises:
        UserError: the checkpoint was written otherwise, or is not whole.
    """
    load_pieces(trainer, folder)
    schedule = trainer.lr_scheduler
    schedule.load_state_dict(torch.load(folder / SCHEDULER_NAME, weights_only=True))
    for group, rate in zip(trainer.optimizer.param_groups, schedule.get_last_lr(), strict=True):
        group["lr"] = rate
    if trainer.is_deepspeed_enabled:
        steps = TrainerState.load_from_json(str(folder / TRAINER_STATE_NAME)).global_step
        trainer.deepspeed.global_steps = steps
    trainer._load_scaler(str(folder))


def whole_state(model: nn.Module) -> dict[str, Any]:
    """The weights that FSDP has spread, put together on the first process's CPU; elsewhere none."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return get_model_state_dict(model, options=options)


def check_saved(folder: Path) -> None:
    """Refuse to call a model saved that is not there.

    Raises:
        Unfinished: it is not; where DeepSpeed was told to keep it in pieces, how to put them
            together.
    """
    if any(folder.glob("*.safetensors")):
        return
    if (folder / "zero_to_fp32.py").exists():
        raise Unfinished(
            f"{folder} holds the model in pieces; `python {folder}/zero_to_fp32.py {folder} "
            f"{folder}` puts them together, and zero3_save_16bit_model: true saves it whole"
        )
    raise Unfinished(
        f"no model was written to {folder}; --resume saves it from the last checkpoint"
    )
