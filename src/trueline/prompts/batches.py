"""Batches of token ids: of like length, padded under a mask."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from trueline.errors import UserError

Progress: TypeAlias = Callable[[int, int], None]
"""Called with (prompts done, prompts in all) after every batch."""


def pad(sequences: Sequence[Sequence[int]], *, fill: int, left: bool) -> tuple[Tensor, Tensor]:
    """Rows of one length, and the mask that says which entries are real.

    Returns:
        ``(input_ids, attention_mask)``, both (B, T) int64; the mask is 1 on real tokens. Which
        token fills the rest does not matter, because nothing attends to it.

    Example:
        >>> ids, mask = pad([[5, 6, 7], [8]], fill=0, left=True)
        >>> ids.tolist(), mask.tolist()
        ([[5, 6, 7], [0, 0, 8]], [[1, 1, 1], [0, 0, 1]])
    """
    width = max(len(ids) for ids in sequences)
    input_ids = torch.full((len(sequences), width), fill, dtype=torch.long)
    mask = torch.zeros_like(input_ids)
    for row, ids in enumerate(sequences):
        where = slice(width - len(ids), width) if left else slice(0, len(ids))
        input_ids[row, where] = torch.tensor(ids, dtype=torch.long)
        mask[row, where] = 1
    return input_ids, mask


def batches_by_length(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Indices in batches of like length, the longest first: what does not fit fails at once.

    Example:
        >>> batches_by_length([3, 9, 4, 8], 2)
        [[1, 3], [2, 0]]
    """
    if size < 1:
        raise UserError(f"batch_size must be at least 1, got {size}")
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    return [order[i : i + size] for i in range(0, len(order), size)]
