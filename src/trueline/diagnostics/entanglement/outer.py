"""Sums of outer products, one a completion, and the inner products between them.

The gradient of a matrix that a model multiplies by is, for each completion i,

    g_i = sum over its tokens t of rows_t cols_t'

so <g_i, g_j> = sum over t of i, s of j of (rows_t . rows_s) (cols_t . cols_s): no g_i is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

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
