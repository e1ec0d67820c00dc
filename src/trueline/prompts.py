"""Prompts as the model reads them: rendered, tokenized, exactly one BOS, never truncated.

Training, diagnostics and generation share these few functions, so that the log-prob an objective
sees, the vector a diagnostic looks at and the answer an evaluation judges belong to the same
tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from trueline.errors import UserError
from trueline.records import Message, Text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Progress: TypeAlias = Callable[[int, int], None]
"""Called with (prompts done, prompts in all) after every batch."""


def render(tokenizer: PreTrainedTokenizerBase, prompt: Text, *, open_turn: bool) -> str:
    """The prompt's text: itself, or its messages through the chat template.

    Args:
        tokenizer: messages need its ``chat_template``.
        prompt: plain text or messages.
        open_turn: whether to end with the generation prompt, the opening of the assistant's
            turn. A conversation that ends with the assistant's words is left open behind them.

    Raises:
        UserError: messages, and no chat template.
    """
    if isinstance(prompt, str):
        return prompt
    if not open_turn:
        return through_template(tokenizer, prompt)
    if prompt[-1].role == "assistant":
        return through_template(tokenizer, prompt, continue_final_message=True)
    return through_template(tokenizer, prompt, add_generation_prompt=True)


def through_template(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], **how: bool
) -> str:
    """Messages as the tokenizer's chat template writes them.

    Raises:
        UserError: the tokenizer has no chat template.
    """
    if tokenizer.chat_template is None:
        raise UserError(
            "the text is a conversation and the tokenizer has no chat template; give the "
            "tokenizer one, or pass plain text"
        )
    turns = [message.to_dict() for message in messages]
    return str(tokenizer.apply_chat_template(turns, tokenize=False, **how))


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids with exactly one BOS where the tokenizer adds one or the text begins with one.

    A chat template that writes a BOS of its own therefore never gets a second. A tokenizer
    without that convention gets none.
    """
    ids: list[int] = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    return one_bos(ids, tokenizer.bos_token_id, adds_bos(tokenizer))


def adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer puts a BOS before plain text of itself."""
    bos = tokenizer.bos_token_id
    return bos is not None and tokenizer("a")["input_ids"][:1] == [bos]


def one_bos(ids: list[int], bos: int | None, adds: bool) -> list[int]:
    """One BOS in front where the tokenizer ``adds`` one or the text wrote one; never two.

    Example:
        >>> one_bos([1, 1, 7], bos=1, adds=True), one_bos([7], bos=1, adds=False)
        ([1, 7], [7])
    """
    start = 0
    while bos is not None and start < len(ids) and ids[start] == bos:
        start += 1
    return [bos, *ids[start:]] if bos is not None and (start or adds) else ids


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
