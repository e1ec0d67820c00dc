"""Tokens: examples become token trees, and trees become one packed batch without padding.

A :class:`TokenTree` is one prompt with its completions as branches. :func:`pack` lays trees end to
end in a single row: each prompt once, its branches behind it, every branch's positions continuing
from the prompt's end. What may attend to what is a :class:`Layout`; :mod:`trueline.scoring`
turns it into attention.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from trueline.errors import UserError
from trueline.prompts import adds_bos, one_bos, render, through_template
from trueline.records import Example, Text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ids: TypeAlias = np.ndarray[Any, np.dtype[np.int32]]
Mask: TypeAlias = np.ndarray[Any, np.dtype[np.bool_]]
View: TypeAlias = Literal["paired", "unpaired", "completion"]


@dataclass(frozen=True, slots=True)
class Branch:
    """One completion's tokens. ``mask`` marks the scored ones (the assistant's own words)."""

    ids: Ids
    mask: Mask

    @property
    def length(self) -> int:
        """Number of scored tokens."""
        return int(self.mask.sum())


@dataclass(frozen=True, slots=True)
class TokenTree:
    """One prompt's tokens with its completions as branches; the unit a batch is made of.

    ``desirable`` labels each branch; a preference pair is always (chosen, rejected), that is
    (True, False). ``reference_prompt`` replaces the prompt for the reference model alone.
    """

    prompt: Ids
    branches: tuple[Branch, ...]
    desirable: tuple[bool, ...]
    reference_prompt: Ids | None = None
    id: str = ""

    def for_reference(self) -> TokenTree:
        """The tree as the reference model sees it."""
        if self.reference_prompt is None:
            return self
        return replace(self, prompt=self.reference_prompt, reference_prompt=None)

    def keep(self, branches: Sequence[int]) -> TokenTree:
        """The tree with only the given branches, in the given order."""
        return replace(
            self,
            branches=tuple(self.branches[i] for i in branches),
            desirable=tuple(self.desirable[i] for i in branches),
        )


class Encoder:
    """Turns examples into token trees with a tokenizer's own conventions.

    - Text is joined as it stands and closed with EOS; messages go through the chat template.
    - Exactly one BOS, whoever writes it, where the tokenizer or its template uses one.
    - The prompt's ids are a prefix of the whole, shared by all completions of the example.
    - Too long: the prompt loses tokens from its left (never BOS) before a completion loses any
      from its right, and a completion keeps at least one token.

    ``counts`` holds what happened: ``prompts_truncated``, ``completions_truncated`` and
    ``boundary_merges`` (the tokenizer would merge across the boundary; the sides are encoded
    apart).

    Args:
        tokenizer: any Hugging Face tokenizer; messages need its ``chat_template``.
        max_length: tokens of prompt and completion together; None for no limit.
        max_prompt_length: tokens of the prompt; None for no limit of its own.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int | None = 1024,
        max_prompt_length: int | None = None,
    ) -> None:
        if max_length is not None and max_length < 2:
            raise UserError(f"max_length must be at least 2, got {max_length}")
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.max_prompt_length = max_prompt_length
        self.counts: Counter[str] = Counter()
        self._bos = tokenizer.bos_token_id
        self._adds_bos = adds_bos(tokenizer)

    def __call__(self, example: Example) -> TokenTree:
        """The example's prompt and all its completions. Labels are filled in by a view."""
        try:
            prompt_text = render(self.tokenizer, example.prompt, open_turn=True)
            prompt = self._ids(prompt_text)
            branches = tuple(
                self._branch(example.prompt, prompt_text, completion.content)
                for completion in example.completions
            )
            reference = (
                None
                if example.reference_prompt is None
                else self._with_bos(
                    self._ids(render(self.tokenizer, example.reference_prompt, open_turn=True))
                )
            )
        except UserError as error:
            raise UserError(f"{example.id or 'example'}: {error}") from None
        tree = TokenTree(
            self._with_bos(prompt),
            branches,
            tuple(bool(completion.desirable) for completion in example.completions),
            reference,
            example.id or "",
        )
        return self._truncate(tree)

    def _ids(self, text: str) -> Ids:
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return np.asarray(ids, dtype=np.int32)

    def _with_bos(self, ids: Ids) -> Ids:
        return np.asarray(one_bos(ids.tolist(), self._bos, self._adds_bos), dtype=np.int32)

    def _branch(self, prompt: Text, prompt_text: str, completion: Text) -> Branch:
        ids: list[Ids] = []
        mask: list[Mask] = []
        before = prompt_text
        for text, scored in self._segments(prompt, prompt_text, completion):
            piece = self._continuation(before, text)
            ids.append(piece)
            mask.append(np.full(len(piece), scored))
            before += text
        eos = self.tokenizer.eos_token_id
        if isinstance(completion, str) and eos is not None and (not ids or ids[-1][-1:] != eos):
            ids.append(np.asarray([eos], dtype=np.int32))
            mask.append(np.ones(1, dtype=np.bool_))
        return Branch(np.concatenate(ids), np.concatenate(mask))

    def _segments(
        self, prompt: Text, prompt_text: str, completion: Text
    ) -> Iterator[tuple[str, bool]]:
        """The completion's text in pieces, each with whether it is scored."""
        if isinstance(completion, str) or isinstance(prompt, str):
            yield str(completion), True
            return
        done = prompt_text
        for index, message in enumerate(completion):
            history = (*prompt, *completion[: index + 1])
            scored = message.role == "assistant"
            if scored and index:
                opened = through_template(self.tokenizer, history[:-1], add_generation_prompt=True)
                yield self._rest(opened, done), False
                done = opened
            closed = through_template(self.tokenizer, history)
            yield self._rest(closed, done), scored
            done = closed

    @staticmethod
    def _rest(whole: str, start: str) -> str:
        if not whole.startswith(start):
            raise UserError(
                "the chat template does not keep the prompt as a prefix of the conversation "
                "(it rewrites earlier turns); use a template that only appends"
            )
        return whole[len(start) :]

    def _continuation(self, before: str, text: str) -> Ids:
        """The ids of ``text`` where it follows ``before``, leaving ``before``'s ids unchanged."""
        if not text:
            return np.zeros(0, dtype=np.int32)
        prefix = self._ids(before)
        whole = self._ids(before + text)
        if len(whole) > len(prefix) and np.array_equal(whole[: len(prefix)], prefix):
            return whole[len(prefix) :]
        self.counts["boundary_merges"] += 1
        return self._ids(text)

    def _truncate(self, tree: TokenTree) -> TokenTree:
        longest = max(len(branch.ids) for branch in tree.branches)
        room = None if self.max_length is None else max(self.max_length - longest, 1)
        limits = [limit for limit in (room, self.max_prompt_length) if limit is not None]
        limit = min(limits, default=None)
        prompt = self._cut_left(tree.prompt, limit)
        reference = tree.reference_prompt
        if reference is not None:
            reference = self._cut_left(reference, limit)
        if self.max_length is None:
            return replace(tree, prompt=prompt, reference_prompt=reference)
        taken = max(len(prompt), 0 if reference is None else len(reference))
        branches = tuple(self._cut_right(b, self.max_length - taken) for b in tree.branches)
        return replace(tree, prompt=prompt, branches=branches, reference_prompt=reference)

    def _cut_left(self, ids: Ids, limit: int | None) -> Ids:
        if limit is None or len(ids) <= limit:
            return ids
        self.counts["prompts_truncated"] += 1
        if self._bos is not None and ids[0] == self._bos:
            return np.concatenate([ids[:1], ids[len(ids) - limit + 1 :]])
        return ids[len(ids) - limit :]

    def _cut_right(self, branch: Branch, limit: int) -> Branch:
        limit = max(limit, 1)
        if len(branch.ids) <= limit:
            return branch
        self.counts["completions_truncated"] += 1
        return Branch(branch.ids[:limit], branch.mask[:limit])


def view(example: Example, tree: TokenTree, layout: View) -> Iterator[TokenTree]:
    """The training trees an encoded example yields under a layout.

    - ``paired``: one tree (chosen, rejected) for each preference pair.
    - ``unpaired``: one tree with every labeled completion; a pair labels its two completions, so
      both stay behind one shared prompt and every batch is balanced.
    - ``completion``: the completions to imitate: chosen, desirable, or all where none is labeled.

    Raises:
        UserError: the example cannot be seen that way; the message says what is missing.
    """
    if layout == "paired":
        if not example.pairs:
            raise UserError(
                f"{tree.id or 'example'}: this objective needs preference pairs (columns prompt, "
                "chosen, rejected) and the row has none; choose an unpaired objective (kto, bco, "
                "kldo) or give pairs"
            )
        for chosen, rejected in example.pairs:
            yield replace(tree.keep((chosen, rejected)), desirable=(True, False))
        return
    labels = {
        (i, c.desirable) for i, c in enumerate(example.completions) if c.desirable is not None
    }
    for chosen, rejected in example.pairs:
        labels |= {(chosen, True), (rejected, False)}
    if layout == "completion":
        wanted = sorted(i for i, desirable in labels if desirable)
        if not labels:
            wanted = list(range(len(example.completions)))
        if wanted:
            yield replace(tree.keep(wanted), desirable=(True,) * len(wanted))
        return
    if not labels:
        raise UserError(
            f"{tree.id or 'example'}: this objective needs labeled completions (columns prompt, "
            "completion, label, or preference pairs) and the row has none"
        )
    ordered = sorted(labels, key=lambda item: (item[0], not item[1]))
    yield replace(tree.keep([i for i, _ in ordered]), desirable=tuple(bool(d) for _, d in ordered))


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
