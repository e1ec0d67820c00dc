"""Checkpoints of what FSDP or DeepSpeed spreads: each process writes its pieces, any number reads.

A piece is a stretch of one weight laid flat, from an element on, with the same stretches of what
the optimizer keeps of it. Whatever the engine and the number of processes that read, each looks up
the stretches that it holds itself: nothing is put together, nothing is sent. All is safetensors,
where the engines' own checkpoints are pickles.

    pieces-weight-00000-of-00002.safetensors       (likewise pieces-exp_avg-..., for Adam)
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from trueline.errors import UserError

WEIGHT = "weight"
OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "sgd")
"""Optimizers that keep, besides the count of steps, only values of each weight."""

WRAPPERS = re.compile(r"(_checkpoint_wrapped_module|_orig_mod|module)\.")


@dataclass(frozen=True)
class Piece:
    """What this process holds of one weight.

    Args:
        name: the weight's.
        start: which of the weight's elements is the first.
        owner: what the optimizer knows: the weight, or a long row in which many are laid.
        offset: where in the owner, laid flat, the piece begins.
        size: elements; 0 where another process holds all.
    """

    name: str
    start: int
    owner: Tensor
    offset: int
    size: int

    def of(self, values: Tensor) -> Tensor:
        """The piece of the owner's values, or of what has their shape: a view."""
        local = values.to_local() if hasattr(values, "to_local") else values
        return local.detach().reshape(-1)[self.offset : self.offset + self.size]


def pieces(trainer: Any) -> list[Piece]:
    """What this process holds of the trained weights."""
    for module in trainer.model.modules():
        if hasattr(module, "reshard"):  # FSDP leaves some put together after a forward pass
            module.reshard()
    named = [(WRAPPERS.sub("", n), p) for n, p in trainer.model.named_parameters()]
    named = [(name, parameter) for name, parameter in named if parameter.requires_grad]
    if not trainer.is_deepspeed_enabled:
        return [_of_parameter(name, parameter) for name, parameter in named]
    zero = trainer.deepspeed.optimizer
    if getattr(zero, "swap_optimizer", False):
        raise UserError(
            "what DeepSpeed keeps on NVMe cannot be written into a checkpoint; set save_strategy: "
            "no, or offload to the CPU"
        )
    if any(hasattr(parameter, "ds_id") for _, parameter in named):
        return [_of_zero3(zero, name, parameter) for name, parameter in named]
    rows = getattr(zero, "single_partition_of_fp32_groups", None)
    if rows is None:  # ZeRO-1 in bfloat16 has an optimizer of its own
        rows = getattr(zero, "fp32_groups_flat_partition", None)
    if rows is None:
        raise UserError(
            f"what DeepSpeed's {type(zero).__name__} keeps cannot be checkpointed; set "
            "zero_stage to 1, 2 or 3, or save_strategy: no"
        )
    found = [(name, parameter, parameter._hp_mapping) for name, parameter in named]
    return [
        Piece(name, held.lp_fragment_address.start, rows[held.param_group_index],
              held.hp_fragment_address.start, held.hp_fragment_address.numel)
        for name, _, held in found if held is not None
    ]  # fmt: skip


def _of_parameter(name: str, parameter: Any) -> Piece:
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    if not hasattr(parameter, "to_local"):  # it is whole on every process
        return Piece(name, 0, parameter, 0, parameter.numel())
    shape, at = compute_local_shape_and_global_offset(
        parameter.shape, parameter.device_mesh, parameter.placements
    )
    if tuple(shape[1:]) != tuple(parameter.shape[1:]):
        raise UserError(f"{name} is spread along another dimension than its first")
    row = math.prod(parameter.shape[1:])
    return Piece(name, (at[0] if at else 0) * row, parameter, 0, math.prod(shape))


def _of_zero3(zero: Any, name: str, parameter: Any) -> Piece:
    group, offset, size = zero.grad_position[zero.get_param_id(parameter)]
    start = size * zero._get_param_partition_rank(parameter)
    real = max(0, min(size, parameter.ds_numel - start))  # the rest fills the last process up
    return Piece(name, start, zero.fp32_partitioned_groups_flat[group], offset, real)


def _states(trainer: Any) -> Any:
    """What the innermost optimizer keeps, by owner."""
    return _innermost(trainer.optimizer).state


def _innermost(optimizer: Any) -> Any:
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer


# --- writing --------------------------------------------------------------------------------------


def save_pieces(trainer: Any, folder: Path) -> None:
    """Write this process's pieces; every process does.

    Raises:
        UserError: the optimizer keeps what is no value of each weight.
    """
    folder.mkdir(parents=True, exist_ok=True)
    held, states = [piece for piece in pieces(trainer) if piece.size], _states(trainer)
    numbers: dict[str, float] = {}
    kinds = {WEIGHT}
    for piece in held:
        for key, value in states.get(piece.owner, {}).items():
            if isinstance(value, Tensor) and value.shape == piece.owner.shape and value.dim():
                kinds.add(key)
            elif value is not None:
                numbers[key] = float(value)
    rank, world = trainer.args.process_index, trainer.args.world_size
    facts = {
        "starts": json.dumps({piece.name: piece.start for piece in held}),
        "numbers": json.dumps(numbers),
    }
    for kind in sorted(kinds):
        tensors = {
            piece.name: piece.of(piece.owner if kind == WEIGHT else states[piece.owner][kind])
            .cpu().clone() for piece in held
        }  # fmt: skip
        file = folder / f"pieces-{kind}-{rank:05d}-of-{world:05d}.safetensors"
        save_file(tensors, file, metadata=facts)


# --- reading --------------------------------------------------------------------------------------


class Kept:
    """One kind of values in a checkpoint: all processes' pieces of it.

    Args:
        files: one of each process.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.numbers: dict[str, float] = {}
        self._files = [safe_open(file, framework="pt") for file in files]
        self._at: dict[str, list[tuple[int, Any]]] = {}
        for file in self._files:
            facts = file.metadata() or {}
            self.numbers.update(json.loads(facts.get("numbers", "{}")))
            for name, start in json.loads(facts.get("starts", "{}")).items():
                self._at.setdefault(name, []).append((start, file))
        for found in self._at.values():
            found.sort(key=lambda piece: piece[0])

    def read(self, piece: Piece, into: Tensor) -> None:
        """Copy the elements of a piece.

        Raises:
            UserError: they are not all there.
        """
        at, end = piece.start, piece.start + piece.size
        for start, file in self._at.get(piece.name, []):
            row = file.get_slice(piece.name)
            stop = start + row.get_shape()[0]
            if start <= at < stop:
                until = min(end, stop)
                into[at - piece.start : until - piece.start].copy_(row[at - start : until - start])
                at = until
        if at < end:
            raise UserError(
                f"the checkpoint lacks elements {at} to {end} of {piece.name}: it is of another "
                "model, or some machine's files are not in this folder"
            )


def has_pieces(folder: Path) -> bool:
    """Whether a checkpoint was written in pieces."""
    return any(folder.glob(f"pieces-{WEIGHT}-*.safetensors"))


def load_pieces(trainer: Any, folder: Path, *, optimizer: bool = True) -> None:
    """Read what this process holds, however many wrote the checkpoint and with whichever engine.

    Args:
        trainer: with its model wrapped.
        folder: the checkpoint.
        optimizer: whether also what the optimizer keeps; the weights alone otherwise.

    Raises:
        UserError: the checkpoint has no such pieces, or not all.
    """
    files: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("pieces-*-of-*.safetensors")):
        files.setdefault(path.name.split("-")[1], []).append(path)
    if WEIGHT not in files:
        raise UserError(
            f"{folder} holds no pieces of spread weights; it was written without FSDP and "
            "DeepSpeed, or by an older release: go on with it as it was written"
        )
    try:
        kept = {kind: Kept(paths) for kind, paths in files.items()}
        held = pieces(trainer)
        with torch.no_grad():
            for piece in held:
                kept[WEIGHT].read(piece, piece.of(piece.owner))
            if optimizer:
                _load_states(trainer, held, kept)
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(f"{folder} cannot be resumed from: {error}") from error
    if trainer.is_deepspeed_enabled:
        _spread_again(trainer.deepspeed.optimizer)


def _load_states(trainer: Any, held: Sequence[Piece], kept: Mapping[str, Kept]) -> None:
    inner, kinds = _innermost(trainer.optimizer), [kind for kind in kept if kind != WEIGHT]
    groups = {id(p): group for group in inner.param_groups for p in group["params"]}
    plain = type(inner).__module__.startswith("torch.")
    for piece in held:
        if piece.owner not in inner.state or not inner.state[piece.owner]:
            state: dict[str, Any] = {kind: torch.zeros_like(piece.owner) for kind in kinds}
            for name, number in kept[WEIGHT].numbers.items():
                group = groups.get(id(piece.owner), inner.param_groups[0])
                there = bool(group.get("fused") or group.get("capturable"))
                device = piece.owner.device if there else "cpu"
                state[name] = (
                    torch.tensor(number, dtype=torch.float32, device=device)
                    if plain else int(number)
                )  # fmt: skip
            inner.state[piece.owner] = state
        for kind in kinds:
            kept[kind].read(piece, piece.of(inner.state[piece.owner][kind]))


def _spread_again(zero: Any) -> None:
    """DeepSpeed's working weights, from the float32 ones that were read."""
    if not hasattr(zero, "fp32_partitioned_groups_flat"):
        zero.update_lp_params()
        return
    for group in range(len(zero.fp32_partitioned_groups_flat)):
        zero._reassign_or_swap_out_partitioned_parameters(group)
    if zero.persistent_parameters:  # small ones, which every process keeps whole
        zero.persistent_parameters[0].partition(zero.persistent_parameters)
        zero.persistent_parameters[0].all_gather(zero.persistent_parameters)
