"""What a training is made of, by its configuration: accelerator, encodings, denoiser, optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from trueline.batching import View as Layout
from trueline.diffusion.config import DiffusionConfig
from trueline.diffusion.data.encode import Encodings
from trueline.diffusion.data.frames import Framing
from trueline.diffusion.data.load import ImageExample
from trueline.diffusion.models.adapters import add_adapter
from trueline.diffusion.models.families import TextToImage
from trueline.diffusion.training.step import Reference
from trueline.errors import UserError
from trueline.processes import started


def make_accelerator(config: DiffusionConfig) -> Any:
    """accelerate's, with trackers.

    Raises:
        UserError: a way of distributing that is not known here; several processes that do not know
            of each other; a tracker that is not installed.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import ProjectConfiguration

    AcceleratorState._reset_state()  # an earlier run of this process may have had another precision
    try:
        accelerator = Accelerator(
            # told so, it joins the processes of torchrun where there is no GPU, too
            cpu=started() > 1 and not torch.accelerator.is_available(),
            mixed_precision=config.mixed_precision,
            log_with=list(config.report_to) or None,
            project_config=ProjectConfiguration(config.output_dir),
        )
    except (ValueError, ImportError) as error:
        raise UserError(f"report_to: {error}") from None
    kind = str(accelerator.distributed_type.value)
    if kind in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        raise UserError(
            f"diffusion align runs on one process or as data parallel, not with {kind}; use_peft: "
            "true and gradient_checkpointing: true fit large models on one device"
        )
    if started() != accelerator.num_processes:
        raise UserError(
            f"the launcher started {started()} processes and accelerate knows "
            f"{accelerator.num_processes}: each would train alone; launch with `trueline diffusion "
            "align ... --num_processes N`"
        )
    if config.allow_tf32:
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
    return accelerator


def make_encodings(
    config: DiffusionConfig, model: TextToImage, examples: Sequence[ImageExample], layout: Layout
) -> Encodings:
    """What the frozen parts make of the examples, at the configured size."""
    framing = Framing(
        config.resolution or model.resolution,
        config.random_flip,
        config.random_crop,
        config.seed,
    )
    chosen_only = layout == "completion"
    return Encodings(model, examples, framing, config.keeping, chosen_only=chosen_only)


def prepare_denoiser(
    config: DiffusionConfig, model: TextToImage, device: torch.device, *, reference: bool
) -> Reference | None:
    """Freeze or adapt the denoiser, and take the reference from it as it now is.

    Raises:
        UserError: it carries an adapter already.
    """
    denoiser = model.denoiser
    denoiser.to(device)
    if getattr(denoiser, "peft_config", None):
        raise UserError("the model carries an adapter already; merge it, then align")
    if config.channels_last:
        denoiser.to(memory_format=torch.channels_last)
    if config.use_peft:
        add_adapter(
            denoiser,
            rank=config.lora_r,
            alpha=config.lora_alpha,
            dropout=config.lora_dropout,
            targets=config.lora_target_modules or model.lora_targets,
            seed=config.seed,
        )
    else:
        if denoiser.dtype != torch.float32:
            denoiser.to(torch.float32)
        denoiser.requires_grad_(True)
    frozen = Reference(denoiser, adapter=config.use_peft) if reference else None
    if config.gradient_checkpointing:
        denoiser.enable_gradient_checkpointing()
    denoiser.train()
    return frozen


def make_optimizer(config: DiffusionConfig, parameters: Sequence[nn.Parameter]) -> Any:
    """The optimizer.

    Raises:
        UserError: it needs a library that is not installed.
    """
    rate, decay = config.learning_rate, config.weight_decay
    if config.optimizer == "adafactor":
        return torch.optim.Adafactor(parameters, lr=rate, weight_decay=decay)
    kind: Any = torch.optim.AdamW
    if config.optimizer == "adamw_8bit":
        try:
            from bitsandbytes import optim as eight_bit
        except ImportError:
            raise UserError(
                "optimizer: adamw_8bit needs the extra: pip install 'trueline[bitsandbytes]'"
            ) from None
        kind = eight_bit.AdamW8bit
    betas = (config.adam_beta1, config.adam_beta2)
    return kind(parameters, lr=rate, betas=betas, eps=config.adam_epsilon, weight_decay=decay)


def make_learning_rates(config: DiffusionConfig, optimizer: Any) -> Any:
    """The schedule of learning rates.

    Raises:
        UserError: it is unknown.
    """
    from diffusers.optimization import get_scheduler

    try:
        return get_scheduler(
            config.lr_scheduler_type,
            optimizer,
            num_warmup_steps=config.warmup_steps,
            num_training_steps=config.max_steps,
            num_cycles=config.lr_num_cycles,
            power=config.lr_power,
        )
    except (ValueError, AttributeError) as error:  # one wants rules that no option gives
        raise UserError(f"lr_scheduler_type: {error}") from None
