"""How much memory a run will take, said before it starts.

Weights, gradients and optimizer states are counted; what the backward pass keeps is measured, by
running the body on two made-up rows and looking at every tensor autograd saves:

    bytes = constant + slope * tokens

so it holds for any architecture, precision and adapter.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor, nn

from trueline.batching import Branch, TokenTree
from trueline.errors import UserError
from trueline.scoring import Scorer, evaluating
from trueline.scoring.head import CHUNK_ELEMENTS, KEEP_ELEMENTS
from trueline.scoring.scorer import body_of, packed_hidden

GIB = 2**30
PROBE_TOKENS = (48, 144)

OPTIMIZER_BYTES = {"adamw": 8, "adam": 8, "lion": 4, "sgd": 0, "adafactor": 0.1, "rmsprop": 4}
"""Bytes of optimizer state a trained float32 weight, by the start of ``optim``'s name; adafactor's
factored moments are few."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes a training step takes at its peak, by what takes them.

    Args:
        weights: parameters and buffers of the policy.
        reference: those of a reference model that is kept beside it.
        gradients: of the trained parameters.
        optimizer: its states.
        activations: what the largest micro-batch keeps for the backward pass.
        head: the LM head's probabilities, its working chunk and its weight's gradient.
        tokens: in the largest micro-batch.
        available: bytes free for what is not there yet (all but weights and reference).
    """

    weights: int
    reference: int
    gradients: int
    optimizer: int
    activations: int
    head: int
    tokens: int
    available: int

    @property
    def total(self) -> int:
        """All of it, in bytes."""
        return self.weights + self.reference + self.to_come

    @property
    def to_come(self) -> int:
        """What is not in memory before training starts."""
        return self.gradients + self.optimizer + self.activations + self.head

    def __str__(self) -> str:
        names = ("weights", "reference", "gradients", "optimizer", "activations", "head")
        sizes = asdict(self)
        parts = ", ".join(f"{name} {sizes[name] / GIB:.2f}" for name in names if sizes[name])
        return (
            f"memory: about {self.total / GIB:.2f} GiB ({parts}; {self.tokens} tokens in the "
            f"largest micro-batch), {self.available / GIB:.2f} GiB free before it starts"
        )

    def check(self) -> None:
        """Stop before the run does.

        Raises:
            UserError: what is to come is more than what is free; names the largest part's remedy.
        """
        if self.to_come <= self.available:
            return
        step = self.activations + self.head
        fixed = self.gradients + self.optimizer
        remedy = (
            "lower per_device_train_batch_size and raise gradient_accumulation_steps alike (the "
            "update stays the same), set max_tokens_per_micro_batch, gradient_checkpointing: true, "
            "bf16: true or a shorter max_length"
            if step > fixed
            else "train an adapter (use_peft: true), choose an optimizer with less state (optim: "
            "adafactor, or adamw_8bit), or shard over processes (fsdp)"
        )
        raise UserError(f"this run does not fit. {str(self).capitalize()}; {remedy}")


def estimate(
    scorer: Scorer,
    *,
    tokens: int,
    scored: int,
    reference: nn.Module | None = None,
    optimizer: str = "adamw",
    checkpointing: bool = False,
    autocast: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext,
) -> MemoryEstimate:
    """The peak memory of a training step.

    Args:
        scorer: of the policy.
        tokens: packed tokens in the largest micro-batch.
        scored: scored tokens in it, which the LM head sees.
        reference: a reference model that stays in memory beside the policy.
        optimizer: ``optim`` of the configuration.
        checkpointing: whether gradient checkpointing will be on.
        autocast: the forward pass's precision context.
    """
    model = scorer.model
    with evaluating(model), autocast():
        activations = _activations(scorer, tokens, checkpointing)
    trained = [p for p in model.parameters() if p.requires_grad]
    head = scorer.core.get_output_embeddings().weight
    logits = scored * head.shape[0]
    kept = min(logits, KEEP_ELEMENTS)
    working = 3 * min(logits, CHUNK_ELEMENTS)
    head_bytes = 4 * (kept + working) + (4 * head.numel() if head.requires_grad else 0)
    device = next(model.parameters()).device
    return MemoryEstimate(
        weights=_bytes(model),
        reference=0 if reference is None else _bytes(reference),
        gradients=sum(p.numel() * p.element_size() for p in trained),
        optimizer=int(sum(p.numel() for p in trained) * _optimizer_bytes(optimizer)),
        activations=activations,
        head=head_bytes,
        tokens=tokens,
        available=available(device),
    )


def _bytes(model: nn.Module) -> int:
    tensors = [*model.parameters(), *model.buffers()]
    return sum({t.data_ptr(): t.numel() * t.element_size() for t in tensors}.values())


def _optimizer_bytes(name: str) -> float:
    if "8bit" in name:
        return 2
    return next((size for key, size in OPTIMIZER_BYTES.items() if name.startswith(key)), 8)


def _activations(scorer: Scorer, tokens: int, checkpointing: bool) -> int:
    """Bytes kept for the backward pass of ``tokens`` tokens. With gradient checkpointing: each
    layer's input, and one whole layer at a time, which is computed again."""
    kept = _line([_saved_bytes(scorer, n) for n in PROBE_TOKENS], tokens)
    if not checkpointing:
        return kept
    config = scorer.core.config.get_text_config()
    width = next(scorer.core.parameters()).element_size() * config.hidden_size
    return kept // config.num_hidden_layers + config.num_hidden_layers * tokens * width


def _line(sizes: list[int], tokens: int) -> int:
    (a, b), (small, large) = PROBE_TOKENS, sizes
    slope = (large - small) / (b - a)
    return int(small + slope * (tokens - a))


def _saved_bytes(scorer: Scorer, tokens: int) -> int:
    """Bytes of distinct tensors that autograd saves for the body on one made-up tree."""
    known = {p.untyped_storage().data_ptr() for p in scorer.model.parameters()}
    saved: dict[int, Any] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            saved[storage.data_ptr()] = storage  # held, so that no address is used twice
        return tensor

    ids = np.full(tokens // 3, 3, dtype=np.int32)
    branch = Branch(np.append(ids, 3).astype(np.int32), np.ones(len(ids) + 1, dtype=np.bool_))
    batch = scorer.pack([TokenTree(ids, (branch, branch), (True, False))])
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with torch.enable_grad(), hooks:
        if scorer.fast:
            output = packed_hidden(scorer.core, batch)
        else:
            plain = {"position_ids": batch.position_ids, "use_cache": False}
            output = body_of(scorer.core)(batch.input_ids, **plain).last_hidden_state
        total = sum(storage.nbytes() for storage in saved.values())
    del output
    return total


def available(device: torch.device) -> int:
    """Bytes a process may still take on a device: of a GPU, or of the machine within the limit its
    container sets. A model that nothing holds any more still hangs in the cycles of its trainer:
    these are collected first, or a loop of trainings would fill the memory."""
    gc.collect()
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + unused)
    free = int(psutil.virtual_memory().available)
    with contextlib.suppress(OSError, ValueError, KeyError):  # no container, or one without limit
        free = min(free, _left_in_container(Path("/sys/fs/cgroup")))
    return free


def _left_in_container(group: Path) -> int:
    """The limit less what is used; files kept in memory do not count, they make room when asked."""
    lines = (group / "memory.stat").read_text().splitlines()
    stat = dict(line.split() for line in lines)
    cached = int(stat["active_file"]) + int(stat["inactive_file"])
    used = int((group / "memory.current").read_text()) - cached
    return int((group / "memory.max").read_text()) - used
