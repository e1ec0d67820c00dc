"""Checkpoints: trained weights, optimizer, learning rates and average, and nothing frozen.

The reference is no part of one: it is the model the run began with, and stays that on resuming.
What makes a checkpoint whole, and whose it is, is shared with the other trainer
(:mod:`trueline.training.checkpoints`).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from trueline.errors import UserError
from trueline.identity import Identity
from trueline.training.checkpoints import finish, rotate

WEIGHTS, STATE = "weights.safetensors", "state.pt"


def save_checkpoint(
    metrics: Path,
    step: int,
    weights: Mapping[str, Tensor],
    state: Mapping[str, Any],
    identity: Identity,
    *,
    limit: int | None = None,
) -> Path:
    """Write ``checkpoint-STEP`` beside the metrics, under another name until it is whole.

    Args:
        metrics: the run's file of metrics, cut back to where it is now on resuming.
        step: steps done.
        weights: the trained tensors by name.
        state: tensors, numbers and text in plain containers.
        identity: of the run.
        limit: keep only the last so many checkpoints.
    """
    folder = metrics.with_name(f"{PREFIX_CHECKPOINT_DIR}-{step}")
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    save_file({name: t.detach().cpu().contiguous() for name, t in weights.items()}, part / WEIGHTS)
    torch.save({**state, "step": step}, part / STATE)
    finish(part, identity, metrics)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(part, folder)
    rotate(str(metrics.parent), limit, None)
    return folder


def load_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights and the state that :func:`save_checkpoint` wrote; no pickled code is run."""
    try:
        state = torch.load(folder / STATE, map_location="cpu", weights_only=True)
        return load_file(folder / WEIGHTS), state
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"{folder} cannot be resumed from: {error}") from error
