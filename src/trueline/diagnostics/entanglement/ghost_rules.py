"""What each kind of module's gradient is made of, token by token: sums of outer products,
one a completion, and the inner products between them.

The gradient of a matrix that a model multiplies by is, for each completion i,

    g_i = sum over its tokens t of rows_t cols_t'

so <g_i, g_j> = sum over t of i, s of j of (rows_t . rows_s) (cols_t . cols_s): no g_i is needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers.pytorch_utils import Conv1D

from trueline.batching import PackedBatch, TokenTree


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


AT_ONCE = 1 << 22
"""Elements of completions' gradients that are formed at once."""


@dataclass(frozen=True)
class Outer:
    """One use of a matrix (p, q) by T tokens.

    Args:
        rows: (T, p), or (T,) int64 indices of one-hot rows (an embedding's).
        cols: (T, q).
        owners: (T,) the completion each token belongs to, ascending.
    """

    rows: Tensor
    cols: Tensor
    owners: Tensor

    def of(self, first: int, last: int) -> Outer:
        """The tokens of completions first..last - 1, renumbered from 0."""
        ends = torch.searchsorted(self.owners, self.owners.new_tensor([first, last])).tolist()
        at = slice(*ends)
        return Outer(self.rows[at], self.cols[at], self.owners[at] - first)


def blocks(uses: Sequence[Outer], rows: int, count: int, group: int) -> Tensor:
    """(count / group, group, group) inner products of completions' gradients within each group.

    Args:
        uses: all uses of one matrix; a tied one has several, and their cross terms count.
        rows: p of the matrix.
        count: completions, a multiple of ``group``.
        group: completions that are compared with each other: 2 for pairs, 1 for norms alone,
            ``count`` for the whole Gram matrix.

    Example:
        >>> use = Outer(torch.eye(2), torch.tensor([[1.0], [3.0]]), torch.tensor([0, 1]))
        >>> blocks([use], rows=2, count=2, group=2).tolist()      # orthogonal rows
        [[[1.0, 0.0], [0.0, 9.0]]]
    """
    found = []
    for first in range(0, count, group):
        parts = [use.of(first, first + group) for use in uses]
        form = _formed if _forming_is_cheaper(parts, rows, group) else _paired
        found.append(form(parts, rows, group))
    return torch.stack(found)


def _forming_is_cheaper(uses: Sequence[Outer], rows: int, group: int) -> bool:
    """Whether to form the gradients rather than to multiply tokens in pairs, by products."""
    cols = uses[0].cols.shape[1]
    sizes = [(len(use.owners), use.rows.dim() > 1) for use in uses]
    forming = sum(tokens * (rows if dense else 1) for tokens, dense in sizes) + group**2 * rows
    pairing = sum(
        a * b * (cols + (rows if dense and also else 0)) for a, dense in sizes for b, also in sizes
    )
    return forming * cols < pairing


def _paired(uses: Sequence[Outer], rows: int, group: int) -> Tensor:
    """The products over pairs of tokens, summed over each pair of completions."""
    total = uses[0].cols.new_zeros(group, group)
    for a in uses:
        for b in uses:
            kernel = _dots(a.rows, b.rows) * (a.cols @ b.cols.T)
            half = kernel.new_zeros(group, kernel.shape[1]).index_add_(0, a.owners, kernel)
            total.index_add_(1, b.owners, half)
    return total


def _dots(a: Tensor, b: Tensor) -> Tensor:
    """rows_t . rows_s, where either side may be one-hot rows given by their indices."""
    if a.dim() == 1:
        return a[:, None] == b[None] if b.dim() == 1 else b[:, a].T
    return a[:, b] if b.dim() == 1 else a @ b.T


def _formed(uses: Sequence[Outer], rows: int, group: int) -> Tensor:
    """The gradients of one group of completions, formed some rows at a time, and multiplied."""
    cols = uses[0].cols.shape[1]
    counts = [torch.bincount(use.owners, minlength=group).tolist() for use in uses]
    total = uses[0].cols.new_zeros(group, group)
    step = max(1, AT_ONCE // (group * cols))
    for first in range(0, rows, step):
        last = min(first + step, rows)
        gradients = total.new_zeros(group, last - first, cols)
        for use, own in zip(uses, counts, strict=True):
            if use.rows.dim() == 1:
                inside = (use.rows >= first) & (use.rows < last)
                at = use.owners[inside] * (last - first) + use.rows[inside] - first
                gradients.view(-1, cols).index_add_(0, at, use.cols[inside])
                continue
            pieces = zip(gradients, use.rows.split(own), use.cols.split(own), strict=True)
            for gradient, r, c in pieces:
                gradient.addmm_(r[:, first:last].T, c)
        flat = gradients.flatten(1)
        total.addmm_(flat, flat.T)
    return total
