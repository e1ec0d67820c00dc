"""From examples to token trees: one renderer's ids, cut to length where they must be:
whole turns from the oldest, then the beginning of the last."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from trueline.batching.drawn import Drawn, draw, named
from trueline.batching.told import Told
from trueline.batching.trees import Branch, Ids, TokenTree
from trueline.errors import UserError
from trueline.prompts import Options, Piece, Renderer
from trueline.records import Example, Message, Text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


TruncationMode: TypeAlias = Literal["keep_start", "keep_end"]
LEAST = 32
"""Tokens that an answer keeps (or all it has) before a prompt has to give way; at most half of
``max_length``."""


class Encoder:
    """Turns examples into token trees with a tokenizer's and a template's own conventions.

    - The prompt's ids are those that generation starts from, shared by all completions of the
      example; text is closed with EOS, and a template closes its own turns.
    - Too long: the prompt stays whole and answers are cut at their right (``keep_start``). A prompt
      is cut where it alone exceeds ``max_prompt_length``, or leaves an answer fewer than 32 tokens:
      by whole turns from the oldest, then from the left of its last turn.
    - ``keep_end`` keeps the ends instead: the prompt gives way to the longest answer, and an answer
      that is too long alone loses its beginning.

    ``told`` says what happened, in counts, sentences and a finding; ``counts`` are its counts.

    Args:
        tokenizer: any Hugging Face tokenizer; messages need its ``chat_template``.
        max_length: tokens of prompt and completion together; None for no limit.
        max_prompt_length: tokens of the prompt; None for no limit of its own.
        truncation_mode: ``"keep_start"`` or ``"keep_end"``.
        allow_control_tokens: read control tokens that a row's text spells as control tokens.
        append_eos: close a conversation's answer with EOS, too, where its template ends otherwise.

    Raises:
        UserError: a limit that leaves nothing, or an unknown mode.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int | None = 1024,
        max_prompt_length: int | None = None,
        truncation_mode: TruncationMode = "keep_start",
        allow_control_tokens: bool = False,
        append_eos: bool = False,
    ) -> None:
        for name, limit, least in (
            ("max_length", max_length, 2),
            ("max_prompt_length", max_prompt_length, 1),
        ):
            if limit is not None and limit < least:
                raise UserError(f"{name} must be at least {least}, got {limit}")
        if truncation_mode not in ("keep_start", "keep_end"):
            raise UserError(
                f"truncation_mode must be keep_start or keep_end, got {truncation_mode!r}"
            )
        self.tokenizer = tokenizer
        self.append_eos = append_eos
        self.renderer = Renderer(tokenizer, allow_control_tokens=allow_control_tokens)
        self.max_length, self.max_prompt_length = max_length, max_prompt_length
        self.truncation_mode = truncation_mode
        self.told = Told(allowed=allow_control_tokens)

    def __call__(self, example: Example) -> TokenTree:
        """The example's prompt and all its completions. Labels are filled in by a view.

        Raises:
            UserError: the template cannot write the conversation; the message names the row.
        """
        return self.many([example])[0]

    def many(self, examples: Sequence[Example]) -> list[TokenTree]:
        """Each example's tree; the tokenizer is asked once for all texts.

        Raises:
            UserError: as for one example.
        """
        drawn = []
        for example in examples:
            with named(example):
                drawn.append(draw(self.renderer, example))
        trees = []
        with self.renderer.control.ahead(one.texts() for one in drawn):
            for example, one in zip(examples, drawn, strict=True):
                with named(example):
                    trees.append(self._fitted(example, one))
        return trees

    @property
    def options(self) -> dict[str, Any]:
        """What it was made with, but for the tokenizer."""
        return {
            "max_length": self.max_length,
            "max_prompt_length": self.max_prompt_length,
            "truncation_mode": self.truncation_mode,
            "allow_control_tokens": self.told.allowed,
            "append_eos": self.append_eos,
        }

    def fresh(self) -> Encoder:
        """The same encoder with nothing told yet."""
        other = copy.copy(self)
        other.told = Told(allowed=self.told.allowed)
        return other

    @property
    def counts(self) -> Counter[str]:
        """What happened to the rows so far, counted."""
        return self.told.counts

    def said(self) -> list[str]:
        """What became of the rows so far, in sentences; nothing where all went in as they are."""
        return list(self.told.sentences())

    def _fitted(self, example: Example, drawn: Drawn) -> TokenTree:
        """The example's tree, cut to length where it must be, and told of."""
        whole = self._tree(example, drawn)
        if self.told.allowed or drawn.marked:
            self.told.spells(self.renderer, example)
        limit = self._prompt_limit(whole)
        prompts = (whole.prompt, whole.reference_prompt)
        tree = whole
        if limit is not None and any(ids is not None and len(ids) > limit for ids in prompts):
            tree = self._give_way(example, whole, limit)
        tree = self._cut_answers(tree)
        self.told.rows += 1
        if tree is not whole:
            self.told.cut(whole, tree)
        return tree

    def _tree(self, example: Example, drawn: Drawn) -> TokenTree:
        renderer = self.renderer
        bare = renderer.control.encode(drawn.opened)
        branches = tuple(
            self._branch(drawn.opened, bare, pieces, plain=isinstance(completion.content, str))
            for pieces, completion in zip(drawn.answers, example.completions, strict=True)
        )
        reference = None
        if example.reference_prompt is not None:
            assert drawn.reference is not None
            ids = renderer.begin(example.reference_prompt, renderer.control.encode(drawn.reference))
            reference = np.asarray(ids, dtype=np.int32)
        return TokenTree(
            np.asarray(renderer.begin(example.prompt, bare), dtype=np.int32),
            branches,
            tuple(bool(completion.desirable) for completion in example.completions),
            reference,
            example.id or "",
        )

    def _branch(
        self, opened: str, prefix: list[int], pieces: Sequence[Piece], *, plain: bool
    ) -> Branch:
        ids: list[int] = []
        mask: list[bool] = []
        before = opened
        for text, scored in pieces:
            found = self.renderer.continuation(before, [*prefix, *ids], text)
            if found.merged:
                self.counts["boundary_merges"] += 1
            ids += found.ids
            mask += [scored] * len(found.ids)
            before += text
        eos = self.tokenizer.eos_token_id
        if (self.append_eos or plain) and eos is not None and ids[-1:] != [eos]:
            ids.append(eos)
            mask.append(True)
        return Branch(np.asarray(ids, dtype=np.int32), np.asarray(mask, dtype=np.bool_))

    def _prompt_limit(self, tree: TokenTree) -> int | None:
        """How many tokens a prompt may have beside the tree's answers."""
        limit = self.max_prompt_length
        if self.max_length is None:
            return limit
        longest = max(len(branch.ids) for branch in tree.branches)
        if self.truncation_mode == "keep_start":
            longest = min(longest, LEAST, self.max_length // 2)
        room = max(self.max_length - longest, 1)
        return room if limit is None else min(room, limit)

    def _give_way(self, example: Example, tree: TokenTree, limit: int) -> TokenTree:
        """The tree with prompts of at most ``limit`` tokens."""
        prompt, reference = (
            self._shorter(example, text, ids, limit)
            for text, ids in (
                (example.prompt, tree.prompt),
                (example.reference_prompt, tree.reference_prompt),
            )
        )
        if prompt is example.prompt and reference is example.reference_prompt:
            shorter = tree
        else:
            assert prompt is not None
            less = replace(example, prompt=prompt, reference_prompt=reference)
            shorter = self._tree(less, draw(self.renderer, less))
            self.told.turns(example.prompt, prompt)
        return replace(
            shorter,
            prompt=self._cut_left(example.prompt, shorter.prompt, limit),
            reference_prompt=None
            if shorter.reference_prompt is None
            else self._cut_left(example.prompt, shorter.reference_prompt, limit),
        )

    def _shorter(
        self, example: Example, text: Text | None, ids: Ids | None, limit: int
    ) -> Text | None:
        if text is None or ids is None or isinstance(text, str) or len(ids) <= limit:
            return text
        return shortened(self.renderer, text, example.template, limit)

    def _cut_left(self, text: Text, ids: Ids, limit: int) -> Ids:
        """The last tokens, behind what the tokenizer puts before plain text."""
        if len(ids) <= limit:
            return ids
        opening = len(self.renderer.opening) if isinstance(text, str) else 0
        kept = min(opening, limit)
        return np.concatenate([ids[:kept], ids[len(ids) - limit + kept :]])

    def _cut_answers(self, tree: TokenTree) -> TokenTree:
        if self.max_length is None:
            return tree
        reference = tree.reference_prompt
        taken = max(len(tree.prompt), 0 if reference is None else len(reference))
        room = max(self.max_length - taken, 1)
        if all(len(branch.ids) <= room for branch in tree.branches):
            return tree
        kept = slice(room) if self.truncation_mode == "keep_start" else slice(-room, None)
        branches = tuple(Branch(branch.ids[kept], branch.mask[kept]) for branch in tree.branches)
        return replace(tree, branches=branches)


def shortened(
    renderer: Renderer, messages: tuple[Message, ...], options: Options, limit: int
) -> tuple[Message, ...]:
    """The conversation in at most ``limit`` tokens, as far as the template's own words allow it.

    Turns are left out from the oldest, up to the next user's turn, so that what remains begins as
    conversations begin. A system message goes after all others but the last. Where the last turn
    alone is too long, its own words lose their beginning.
    """

    def tokens(turns: tuple[Message, ...]) -> int:
        return len(renderer.prompt_ids(turns, options=options))

    last = messages[-1:]
    for turns in _later(messages):
        last = turns
        if tokens(turns) <= limit:
            return turns
    words = renderer.control.encode(renderer.control.mark(last[-1].content))
    excess = tokens(last) - limit
    while words and excess > 0:
        words = words[excess:]
        rest = renderer.decode(words).lstrip("\ufffd")  # of a letter cut in two
        last = (*last[:-1], replace(last[-1], content=rest))
        excess = tokens(last) - limit
    return last


def _later(messages: tuple[Message, ...]) -> Iterator[tuple[Message, ...]]:
    """The conversation from each later user's turn on, with its system message and then without."""
    head = messages[:1] if messages[0].role == "system" else ()
    starts = [i for i in range(1, len(messages)) if messages[i].role == "user"]
    for start in starts or [len(messages) - 1]:
        if start > len(head):
            yield (*head, *messages[start:])
    if head and len(messages) > 1:
        yield messages[(starts or [len(messages) - 1])[-1] :]
