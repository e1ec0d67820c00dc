"""What each kind of module's gradient is made of, token by token."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers.pytorch_utils import Conv1D

from trueline.batching import PackedBatch, TokenTree
from trueline.diagnostics.entanglement.outer import Outer, blocks


@dataclass
class Call:
    """What a module with trained parameters was given, and what it returned."""

    module: nn.Module
    inputs: tuple[Any, ...]
    output: Tensor
    version: int


def owners_by_shape(
    trees: Sequence[TokenTree], batch: PackedBatch, *, packed: bool
) -> dict[tuple[int, ...], Tensor]:
    """The completion each token belongs to, by the leading shapes in which a module sees tokens."""
    device = batch.owners.device
    if packed:
        sizes = [len(t.prompt) + len(b.ids) - 1 for t in trees for b in t.branches]
        row = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes)).to(device)
        # the LM head and the last layer's row-wise parts see scored tokens only
        return {(1, len(row)): row, (len(row),): row, (1, len(batch.owners)): batch.owners,
                (len(batch.owners),): batch.owners}  # fmt: skip
    width = max(len(t.prompt) + len(b.ids) for t in trees for b in t.branches)
    rows = torch.arange(len(batch.length), device=device).repeat_interleave(width)
    return {(len(batch.length), width): rows, (len(rows),): rows}


class Uses:
    """Collects what each parameter's gradient is made of, by the kind of module it sits in."""

    def __init__(self, owners: Mapping[tuple[int, ...], Tensor], count: int) -> None:
        self.owners = owners
        self.count = count
        self.outers: dict[Tensor, list[Outer]] = {}
        self.vectors: dict[Tensor, Tensor] = {}
        self.uncovered: set[Tensor] = set()

    def take(self, call: Call, slope: Tensor | None) -> None:
        """Add one call of a module, ``slope`` the gradient of its output (None where unused)."""
        module = call.module
        if slope is None:
            return
        fits = call.output._version == call.version and len(call.inputs) == 1
        if fits and isinstance(module, nn.Linear | Conv1D):
            fits = self._linear(module, call.inputs[0], slope)
        elif fits and isinstance(module, nn.Embedding):
            fits = self._embedding(module, call.inputs[0], slope)
        elif fits and _elementwise(module, call):
            fits = self._norm(module, call.inputs[0], slope)
        else:
            fits = False
        if not fits:
            self.uncovered.update(p for p in module._parameters.values() if p is not None)

    def _linear(self, module: nn.Linear | Conv1D, inputs: Tensor, slope: Tensor) -> bool:
        owners = self.owners.get(tuple(inputs.shape[:-1]))
        if owners is None:
            return False
        a, d = wide(inputs).flatten(0, -2), wide(slope).flatten(0, -2)
        rows, cols = (d, a) if isinstance(module, nn.Linear) else (a, d)
        self.outers.setdefault(module.weight, []).append(Outer(rows, cols, owners))
        if module.bias is not None:
            self._add(module.bias, d, owners)
        return True

    def _embedding(self, module: nn.Embedding, ids: Tensor, slope: Tensor) -> bool:
        owners = self.owners.get(tuple(ids.shape))
        if owners is None or module.scale_grad_by_freq or module.max_norm is not None:
            return False
        d = wide(slope).flatten(0, -2) * getattr(module, "embed_scale", 1.0)
        ids = ids.flatten()
        if module.padding_idx is not None:  # its row has no gradient by definition
            d = d.masked_fill((ids == module.padding_idx)[:, None], 0.0)
        self.outers.setdefault(module.weight, []).append(Outer(ids, d, owners))
        return True

    def _norm(self, module: nn.Module, inputs: Tensor, slope: Tensor) -> bool:
        """y = n(x) * (w + c) + b: n(x) is what a step of 1 in w adds to y."""
        owners = self._heads(tuple(slope.shape[:-1]))
        if owners is None:
            return False
        own = {name: p for name, p in module._parameters.items() if p is not None}
        zero = {name: torch.zeros_like(p) for name, p in own.items()}
        at_zero = functional_call(module, zero, (inputs,))
        slope = wide(slope)
        for name, parameter in own.items():
            one = {**zero, name: torch.ones_like(parameter)}
            step = wide(functional_call(module, one, (inputs,))) - wide(at_zero)
            self._add(parameter, (slope * step).flatten(0, -2), owners)
        return True

    def _heads(self, shape: tuple[int, ...]) -> Tensor | None:
        """The owners of tokens that may be split into heads, before or behind the token axis."""
        if shape in self.owners:
            return self.owners[shape]
        if len(shape) != 3 or shape[1] == shape[2]:
            return None
        rows, first, second = shape
        if (rows, first) in self.owners:
            return self.owners[rows, first].repeat_interleave(second)
        if (rows, second) in self.owners:
            grid = self.owners[rows, second].reshape(rows, 1, second)
            return grid.expand(rows, first, second).flatten()
        return None

    def _add(self, parameter: Tensor, tokens: Tensor, owners: Tensor) -> None:
        if parameter not in self.vectors:
            self.vectors[parameter] = tokens.new_zeros(self.count, tokens.shape[-1])
        self.vectors[parameter].index_add_(0, owners, tokens)

    def blocks(self, group: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Each covered parameter with its inner products."""
        for parameter, uses in self.outers.items():
            if parameter not in self.uncovered:
                yield parameter, blocks(uses, parameter.shape[0], self.count, group)
        for parameter, vectors in self.vectors.items():
            if parameter not in self.uncovered:
                yield parameter, gram(vectors, group)


def _elementwise(module: nn.Module, call: Call) -> bool:
    """Whether it may be a norm: weight and bias of one entry a feature, shape kept."""
    own = {name: p for name, p in module._parameters.items() if p is not None}
    size = call.output.shape[-1:]
    return (
        set(own) <= {"weight", "bias"}
        and all(p.shape == size for p in own.values())
        and isinstance(call.inputs[0], Tensor)
        and call.inputs[0].shape == call.output.shape
    )


def gram(vectors: Tensor, group: int) -> Tensor:
    grouped = vectors.reshape(len(vectors) // group, group, -1)
    return grouped @ grouped.transpose(1, 2)


def wide(tensor: Tensor) -> Tensor:
    return tensor.detach().to(torch.promote_types(torch.float32, tensor.dtype))
