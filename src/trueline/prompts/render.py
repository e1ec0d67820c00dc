"""The one renderer: a prompt's tokens as generation will see them, and an answer's behind them.

Training, diagnostics and generation read prompts through this class alone, so that the log-prob an
objective sees, the vector a diagnostic looks at and the answer an evaluation judges belong to the
same tokens. Four things hold for every tokenizer and template:

- a prompt's ids are those that generation starts from, whatever answer follows;
- the ids of prompt and answer together decode to their text;
- what a row's text spells never becomes a control token (:mod:`trueline.prompts.control`);
- before plain text stands what the tokenizer puts there, one BOS at most; a template's output has
  what the template wrote, but for a BOS doubled at its start.

Batches of ids are of like length, padded under a mask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from trueline.errors import UserError
from trueline.prompts.control import ControlTokens
from trueline.records import Message, Text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


Turn: TypeAlias = Mapping[str, Any]
Options: TypeAlias = Mapping[str, Any]
NO_OPTIONS: Options = {}
ANCHORS = ("\n", ".", "a", "0", "]", "=")
"""Texts behind one of which a text is encoded that continues another."""


class Rendered(str):
    """Text that a chat template wrote: its control tokens stay, and nothing is put before it."""

    __slots__ = ()


class Continuation(NamedTuple):
    """The ids of a text behind another, and whether the tokenizer would have merged the two."""

    ids: list[int]
    merged: bool


class Renderer:
    """Reads prompts and answers with a tokenizer's and a chat template's own conventions.

    Args:
        tokenizer: any Hugging Face tokenizer; messages need its ``chat_template``.
        allow_control_tokens: let a row's text spell control tokens.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, allow_control_tokens: bool = False
    ) -> None:
        self.tokenizer = tokenizer
        self.control = ControlTokens(tokenizer, allow=allow_control_tokens)
        self.opening = one_bos(opening(tokenizer), tokenizer.bos_token_id)

    def text(self, prompt: Text, *, open_turn: bool = True, options: Options = NO_OPTIONS) -> str:
        """The prompt's text with marks: itself, or its messages through the chat template.

        Args:
            prompt: plain text, messages, or what a template wrote already.
            open_turn: whether to end with the generation prompt, the opening of the assistant's
                turn. A conversation that ends with the assistant's words is left open behind them.
            options: what else the template reads: ``tools`` and variables of its own.

        Raises:
            UserError: messages and no chat template, or a template that refuses them.
        """
        if isinstance(prompt, Rendered):
            return prompt
        if isinstance(prompt, str):
            return self.control.mark(prompt)
        return self.opened(self.turns(prompt), options, open_turn=open_turn)

    def opened(self, turns: Sequence[Turn], options: Options, *, open_turn: bool = True) -> str:
        """Turns with marks through the chat template; see :meth:`text`."""
        how = {} if not open_turn else {"add_generation_prompt": True}
        if open_turn and turns[-1]["role"] == "assistant":
            how = {"continue_final_message": True}
        return self.template(turns, options, **how)

    def prompt_ids(
        self, prompt: Text, *, open_turn: bool = True, options: Options = NO_OPTIONS
    ) -> list[int]:
        """The prompt's token ids, as generation sees them."""
        text = self.text(prompt, open_turn=open_turn, options=options)
        return self.begin(prompt, self.control.encode(text))

    def begin(self, prompt: Text, ids: Sequence[int]) -> list[int]:
        """The ids with what stands before them: plain text gets the tokenizer's own opening, and a
        BOS that is doubled at the start is there once."""
        plain = isinstance(prompt, str) and not isinstance(prompt, Rendered)
        return one_bos([*self.opening, *ids] if plain else list(ids), self.tokenizer.bos_token_id)

    def continuation(self, before: str, prefix: Sequence[int], text: str) -> Continuation:
        """The ids of ``text`` behind ``before``, whose own ids ``prefix`` stay as they are.

        Where the tokenizer would merge the two, the text is encoded apart, in such a way that the
        whole still decodes to what it is: not as the beginning of a text, before which many
        tokenizers put a blank.
        """
        if not text:
            return Continuation([], False)
        encode, prefix = self.control.encode, list(prefix)
        whole = encode(before + text)
        if len(whole) > len(prefix) and whole[: len(prefix)] == prefix:
            return Continuation(whole[len(prefix) :], False)
        wanted = self.decode(whole)
        apart = encode(text)
        for ids in (apart, *self._behind_anchors(text)):
            if self.decode([*prefix, *ids]) == wanted:
                return Continuation(ids, True)
        return Continuation(apart, True)

    def _behind_anchors(self, text: str) -> Iterator[list[int]]:
        for anchor in ANCHORS:
            alone, both = self.control.encode(anchor), self.control.encode(anchor + text)
            if both[: len(alone)] == alone:
                yield both[len(alone) :]

    def decode(self, ids: Sequence[int]) -> str:
        """The ids as text, control tokens and all."""
        return str(self.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))

    def turns(self, messages: Sequence[Message]) -> list[Turn]:
        """Messages as a template takes them, their texts with marks."""
        return [self.control.mark_all(message.to_dict()) for message in messages]

    def template(self, turns: Sequence[Turn], options: Options, **how: bool) -> Rendered:
        """Turns as the tokenizer's chat template writes them.

        Raises:
            UserError: there is no chat template, or it refuses the conversation.
        """
        if self.tokenizer.chat_template is None:
            raise UserError(
                "the text is a conversation and the tokenizer has no chat template; give the "
                "tokenizer one, or pass plain text"
            )
        given = {**(self.control.mark_all(dict(options)) if options else {}), **how}
        try:
            return Rendered(self.tokenizer.apply_chat_template(turns, tokenize=False, **given))
        except Exception as error:  # a template is a program, and the model's makers wrote it
            what = str(error).strip() or type(error).__name__
            raise UserError(f"the chat template cannot write this conversation: {what}") from None


def opening(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids that the tokenizer puts before plain text of itself: a BOS, or none, or more."""
    bare = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    whole = list(tokenizer("a")["input_ids"])
    places = range(len(whole) - len(bare) + 1)
    return whole[: next((i for i in places if whole[i : i + len(bare)] == bare), 0)]


def one_bos(ids: list[int], bos: int | None) -> list[int]:
    """The ids, with a BOS that is doubled at their start there once.

    Example:
        >>> one_bos([1, 1, 7], bos=1), one_bos([7, 1, 1], bos=1)
        ([1, 7], [7, 1, 1])
    """
    start = 0
    while bos is not None and ids[start : start + 2] == [bos, bos]:
        start += 1
    return ids[start:]


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
