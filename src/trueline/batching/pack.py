"""From token trees to one packed row without padding, and what may attend to what in it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of the row that attends causally to ``past`` and to itself.

    ``past`` is another stretch, of which all is seen, or empty: the prompt, which begins the last
    part before this one that has no past itself.
    """

    queries: slice
    past: slice

    @property
    def seen(self) -> int:
        """Keys the last query sees."""
        return self.past.stop - self.past.start + self.queries.stop - self.queries.start


@dataclass(frozen=True)
class Layout:
    """Which tokens of a packed row may attend to which: a segment sees only itself, a branch
    only its prompt and itself, everything only its past.

    Args:
        segments: the row's trees.
        scored: (S,) the row indices whose hidden state predicts a scored token, each once.
    """

    segments: tuple[Segment, ...]
    scored: Tensor
    _masks: dict[tuple[int, int, int | None, torch.device], Tensor] = field(
        default_factory=dict, repr=False, compare=False
    )

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """The row cut into causal stretches: each prompt with its first branch, then each further
        branch with the prompt as its past. No key is attended to that need not be."""
        parts = []
        start = 0
        for segment in self.segments:
            prompt = slice(start, start + segment.prompt)
            stop = prompt.stop + sum(segment.branches[:1])
            parts.append(Part(slice(start, stop), slice(start, start)))
            for size in filter(None, segment.branches[1:]):
                parts.append(Part(slice(stop, stop + size), prompt))
                stop += size
            start = stop
        return tuple(parts)

    @cached_property
    def sizes(self) -> list[int]:
        """Tokens of each part; they add up to the row."""
        return [part.queries.stop - part.queries.start for part in self.parts]

    @cached_property
    def keys(self) -> Tensor:
        """Row indices of every part's keys, part by part: a shared prompt appears once a part."""
        seen = [torch.arange(s.start, s.stop) for p in self.parts for s in (p.past, p.queries)]
        return torch.cat(seen).to(self.scored.device)

    @cached_property
    def boundaries(self) -> tuple[Tensor, Tensor]:
        """(parts + 1,) int32 where each part's queries, and its keys, begin and end."""
        counts = (self.sizes, [part.seen for part in self.parts])
        ends = [torch.tensor([0, *count]).cumsum(0).int() for count in counts]
        return ends[0].to(self.scored.device), ends[1].to(self.scored.device)

    @property
    def indices(self) -> list[Tensor]:
        """All index tensors, int64, for one transfer to a device; see :meth:`moved`."""
        return [self.scored, self.keys, *(ends.long() for ends in self.boundaries)]

    def moved(self, indices: Sequence[Tensor]) -> Layout:
        """The layout with its ``indices`` where they have been copied to: once a batch, and not
        when a layer first asks for them."""
        scored, keys, queries, seen = indices
        layout = replace(self, scored=scored, _masks={})
        layout.__dict__.update(
            keys=keys, boundaries=(queries.int(), seen.int()), parts=self.parts, sizes=self.sizes
        )
        return layout

    def mask(self, part: Part, window: int | None, device: torch.device) -> Tensor | None:
        """The (queries, keys) bool mask of a part, or None where it is plainly causal."""
        queries, keys = part.queries.stop - part.queries.start, part.seen
        if queries == keys and (window is None or keys <= window):
            return None
        key = (queries, keys, window, device)
        if key not in self._masks:
            self._masks[key] = causal_mask(queries, keys, window, device)
        return self._masks[key]


def onto(device: torch.device | str, tensor: Tensor) -> Tensor:
    """A tensor of the CPU on another device, without waiting for what that has still to do."""
    if torch.device(device).type == "cuda" and torch.cuda.is_available():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def causal_mask(
    queries: int, keys: int, window: int | None = None, device: torch.device | None = None
) -> Tensor:
    """(queries, keys) bool: the last query sees the last key, and each up to ``window`` back."""
    mask = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
    return mask if window is None else mask.triu(keys - queries - window + 1)


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
        device = torch.device(device)
        if device == self.input_ids.device:
            return self
        names = ("input_ids", "position_ids", "predictors", "targets", "owners", "length")
        parts = [*(getattr(self, name) for name in names), *self.layout.indices]
        row = onto(device, torch.cat([part.flatten() for part in parts]))
        pieces = row.split([part.numel() for part in parts])
        moved = [piece.view_as(part) for piece, part in zip(pieces, parts, strict=True)]
        fields = dict(zip(names, moved, strict=False))
        return replace(self, layout=self.layout.moved(moved[len(names) :]), **fields)

    def sums(self, tokens: Tensor) -> Tensor:
        """(C,) sums of per-token values (M,) over each completion."""
        total = tokens.new_zeros(len(self.length))
        return total.index_add(0, self.owners, tokens)


def pack(trees: Iterable[TokenTree], *, share: bool = True, padded: bool = False) -> PackedBatch:
    """Lay trees end to end in one row, each prompt once (or, with ``share=False``, once a branch).

    A branch's last token predicts nothing that is scored, so it is no input. Completions keep
    the order of the trees and of their branches. ``padded`` fills each segment up to the longest,
    to measure what packing saves.
    """
    parts = [part for tree in trees for part in (tree.split() if not share else (tree,))]
    longest = max(part.inputs for part in parts) if padded else 0
    rows: list[Ids] = []
    segments: list[Segment] = []
    predictors: list[np.ndarray[Any, Any]] = []
    targets: list[Ids] = []
    lengths: list[int] = []
    offset = 0
    for part in parts:
        size = len(part.prompt)
        rows.append(part.prompt)
        start = offset + size
        for branch in part.branches:
            scored = np.flatnonzero(branch.mask)
            if size == 0:
                scored = scored[scored > 0]  # nothing precedes the first token
            if not len(scored):
                raise UserError(f"{part.id or 'example'}: a completion has no scored token")
            before = start + scored - 1
            before[scored == 0] = offset + size - 1
            predictors.append(before)
            targets.append(branch.ids[scored])
            lengths.append(len(scored))
            rows.append(branch.ids[:-1])
            start += len(branch.ids) - 1
        sizes = tuple(len(branch.ids) - 1 for branch in part.branches)
        if padded:
            rows.append(np.zeros(longest - part.inputs, dtype=np.int32))
            sizes = (*sizes, longest - part.inputs)
        segments.append(Segment(size, sizes))
        offset += segments[-1].size
    length = torch.tensor(lengths)
    predicts = torch.from_numpy(np.concatenate(predictors))
    return PackedBatch(
        input_ids=torch.from_numpy(np.concatenate(rows).astype(np.int64))[None],
        position_ids=torch.cat([_positions(segment) for segment in segments])[None],
        layout=Layout(tuple(segments), predicts.unique()),
        predictors=predicts,
        targets=torch.from_numpy(np.concatenate(targets).astype(np.int64)),
        owners=torch.repeat_interleave(torch.arange(len(length)), length),
        length=length,
    )
