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

LARGEST = 1 << 26
"""Elements of one parameter's gradients, for one group of completions, that may be formed for a
moment where that costs less than the products over pairs of tokens."""


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
    """Whether to form the gradients rather than to multiply tokens in pairs."""
    cols = uses[0].cols.shape[1]
    if group * rows * cols > LARGEST:
        return False
    tokens = sum(len(use.owners) for use in uses)
    forming = (tokens + group * group) * rows * cols
    return forming < tokens * tokens * (rows + cols)


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
    """The gradients of one group of completions, formed, multiplied and dropped."""
    cols = uses[0].cols.shape[1]
    gradients = uses[0].cols.new_zeros(group, rows, cols)
    for use in uses:
        counts = torch.bincount(use.owners, minlength=group).tolist()
        pieces = zip(gradients, use.rows.split(counts), use.cols.split(counts), strict=True)
        for gradient, r, c in pieces:
            if r.dim() == 1:
                gradient.index_add_(0, r, c)
            else:
                gradient.addmm_(r.T, c)
    flat = gradients.flatten(1)
    return flat @ flat.T
