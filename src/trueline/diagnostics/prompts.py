"""Prompts as the model reads them: rendered, tokenized, exactly one BOS, never truncated.

Diagnostics and generation share these few functions, so that the vector a diagnostic looks at
and the answer an evaluation judges belong to the same tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from trueline.errors import UserError
from trueline.records import Text

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
    if tokenizer.chat_template is None:
        raise UserError(
            "the prompt is a conversation and the tokenizer has no chat template; give the "
            "tokenizer one, or pass plain text"
        )
    continues = open_turn and prompt[-1].role == "assistant"
    rendered = tokenizer.apply_chat_template(
        [message.to_dict() for message in prompt],
        tokenize=False,
        add_generation_prompt=open_turn and not continues,
        continue_final_message=continues,
    )
    return str(rendered)


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids with exactly one BOS where the tokenizer adds one or the text begins with one.

    A chat template that writes a BOS of its own therefore never gets a second. A tokenizer
    without that convention gets none.
    """
    ids: list[int] = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    bos = tokenizer.bos_token_id
    if bos is None:
        return ids
    start = 0
    while start < len(ids) and ids[start] == bos:
        start += 1
    adds = tokenizer("a")["input_ids"][:1] == [bos]
    return [bos, *ids[start:]] if start or adds else ids


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
