"""From token trees to one packed row without padding, and what may attend to what in it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trueline.batching.trees import Ids, TokenTree
from trueline.errors import UserError


@dataclass(frozen=True, slots=True)
class Segment:
    """One tree in a packed row: prompt tokens, then each branch's input tokens."""

    prompt: int
    branches: tuple[int, ...]

    @property
    def size(self) -> int:
        return self.prompt + sum(self.branches)


@dataclass(frozen=True)
class Layout:
    """Which tokens of a packed row may attend to which: a segment sees only itself, a branch
    only its prompt and itself, everything only its past."""

    segments: tuple[Segment, ...]
    _masks: dict[tuple[int, int | None, torch.device], Tensor] = field(
        default_factory=dict, repr=False, compare=False
    )

    @cached_property
    def sizes(self) -> list[int]:
        """Tokens of each segment; they add up to the row."""
        return [segment.size for segment in self.segments]

    def mask(self, index: int, window: int | None, device: torch.device) -> Tensor | None:
        """The (n, n) bool attention mask of one segment, or None where it is plainly causal."""
        segment = self.segments[index]
        plain = len(segment.branches) <= 1
        if plain and (window is None or segment.size <= window):
            return None
        key = (index, window, device)
        if key not in self._masks:
            self._masks[key] = _tree_mask(segment, window, device)
        return self._masks[key]


def _tree_mask(segment: Segment, window: int | None, device: torch.device) -> Tensor:
    """True where a query (row) may see a key (column) of the same tree."""
    branch = torch.cat(
        [torch.zeros(segment.prompt, dtype=torch.long)]
        + [torch.full((n,), i) for i, n in enumerate(segment.branches, start=1)]
    )
    position = _positions(segment)
    past = position[:, None] >= position[None, :]
    same_path = (branch[None, :] == 0) | (branch[:, None] == branch[None, :])
    mask = past & same_path
    if window is not None:
        mask &= position[:, None] - position[None, :] < window
    return mask.to(device)


def _positions(segment: Segment) -> Tensor:
    ranges = [torch.arange(segment.prompt)]
    ranges += [torch.arange(segment.prompt, segment.prompt + n) for n in segment.branches]
    return torch.cat(ranges)


@dataclass(frozen=True)
class PackedBatch:
    """Token trees in one row, ready for a model; C completions, M scored tokens, T tokens.

    Args:
        input_ids: (1, T) the row; position_ids: (1, T) each token's position in its own sequence.
        layout: the attention structure.
        predictors: (M,) the row index whose hidden state predicts each scored token.
        targets: (M,) the scored tokens' ids.
        owners: (M,) the completion each scored token belongs to, in 0..C-1.
        length: (C,) scored tokens of each completion.
    """

    input_ids: Tensor
    position_ids: Tensor
    layout: Layout
    predictors: Tensor
    targets: Tensor
    owners: Tensor
    length: Tensor

    def to(self, device: torch.device | str) -> PackedBatch:
        """The batch on a device."""
        moved = {
            name: getattr(self, name).to(device, non_blocking=True)
            for name in (
                "input_ids", "position_ids", "predictors", "targets", "owners", "length"
            )
        }  # fmt: skip
        return replace(self, **moved)

    def sums(self, tokens: Tensor) -> Tensor:
        """(C,) sums of per-token values (M,) over each completion."""
        total = tokens.new_zeros(len(self.length))
        return total.index_add(0, self.owners, tokens)


def pack(trees: Iterable[TokenTree], *, share: bool = True) -> PackedBatch:
    """Lay trees end to end in one row, each prompt once (or, with ``share=False``, once a branch).

    A branch's last token predicts nothing that is scored, so it is no input. Completions keep
    the order of the trees and of their branches.
    """
    rows: list[Ids] = []
    segments: list[Segment] = []
    predictors: list[np.ndarray[Any, Any]] = []
    targets: list[Ids] = []
    lengths: list[int] = []
    offset = 0
    for tree in trees:
        for part in (tree,) if share else tuple(tree.keep((i,)) for i in range(len(tree.branches))):
            size = len(part.prompt)
            rows.append(part.prompt)
            start = offset + size
            for branch in part.branches:
                scored = np.flatnonzero(branch.mask)
                if size == 0:
                    scored = scored[scored > 0]  # nothing precedes the first token
                if not len(scored):
                    raise UserError(f"{tree.id or 'example'}: a completion has no scored token")
                before = start + scored - 1
                before[scored == 0] = offset + size - 1
                predictors.append(before)
                targets.append(branch.ids[scored])
                lengths.append(len(scored))
                rows.append(branch.ids[:-1])
                start += len(branch.ids) - 1
            segment = Segment(size, tuple(len(branch.ids) - 1 for branch in part.branches))
            segments.append(segment)
            offset += segment.size
    length = torch.tensor(lengths)
    return PackedBatch(
        input_ids=torch.from_numpy(np.concatenate(rows).astype(np.int64))[None],
        position_ids=torch.cat([_positions(segment) for segment in segments])[None],
        layout=Layout(tuple(segments)),
        predictors=torch.from_numpy(np.concatenate(predictors)),
        targets=torch.from_numpy(np.concatenate(targets).astype(np.int64)),
        owners=torch.repeat_interleave(torch.arange(len(length)), length),
        length=length,
    )
