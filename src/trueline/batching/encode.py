"""From examples to token trees, with a tokenizer's own conventions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from trueline.batching.trees import Branch, Ids, Mask, TokenTree
from trueline.errors import UserError
from trueline.prompts import adds_bos, one_bos, render, through_template
from trueline.records import Example, Text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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
                self._branch(example.prompt, prompt_text, prompt, completion.content)
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

    def _branch(self, prompt: Text, prompt_text: str, prompt_ids: Ids, completion: Text) -> Branch:
        ids: list[Ids] = []
        mask: list[Mask] = []
        before, prefix = prompt_text, prompt_ids
        for text, scored in self._segments(prompt, prompt_text, completion):
            if ids:  # the prompt's ids are known already
                prefix = self._ids(before)
            piece = self._continuation(before, prefix, text)
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

    def _continuation(self, before: str, prefix: Ids, text: str) -> Ids:
        """The ids of ``text`` where it follows ``before``, whose own ids ``prefix`` stay as they
        are."""
        if not text:
            return np.zeros(0, dtype=np.int32)
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
