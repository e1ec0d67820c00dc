"""Decoding token by token in a batch that rows leave when they are done, and others join.

A plain batch runs as long as its longest answer. Here a row that has ended leaves at once, with its
keys and values, and prompts that wait join as soon as a quarter of the places is free. Every row
has positions and a mask of its own, so its tokens are those that it would get alone:
sampling depends on the prompt and the seed, as noise on the logits, row by row.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from trueline.prompts import pad

Rows: TypeAlias = Sequence[Sequence[int]]
Chooser: TypeAlias = Callable[[Sequence[int], Tensor], Tensor]
"""From the rows' numbers and (B, V) logits to (B, V) scores, of which the largest is taken."""


def decode(
    model: Any,
    rows: Rows,
    max_new_tokens: int,
    ends: Sequence[int],
    *,
    size: int,
    noise: Chooser | None = None,
) -> Iterator[tuple[int, list[int]]]:
    """Each row's number and new tokens, up to and with its end token, as soon as it is done.

    Args:
        model: a causal language model of which :func:`can_leave` is true.
        rows: prompts' token ids; they join in the order of their length, the longest first.
        max_new_tokens: at most so many for each.
        ends: tokens that end an answer.
        size: rows in the batch at most.
        noise: changes the logits before the largest is taken.
    """
    waiting = sorted(range(len(rows)), key=lambda i: (len(rows[i]), -i))
    batch: _Batch | None = None
    stop = torch.tensor(list(ends), dtype=torch.long)
    new: dict[int, list[int]] = {}
    while waiting or batch is not None:
        free = size - (0 if batch is None else len(batch.rows))
        if waiting and (batch is None or 4 * free >= size):
            joining = [waiting.pop() for _ in range(min(free, len(waiting)))]
            fresh = _Batch.of(model, joining, rows)
            batch = fresh if batch is None else batch.joined(fresh)
        assert batch is not None
        scores = batch.logits if noise is None else noise(batch.rows, batch.logits)
        tokens = scores.argmax(dim=-1).cpu()
        ended = torch.isin(tokens, stop)
        stay = []
        for place, (row, token) in enumerate(zip(batch.rows, tokens.tolist(), strict=True)):
            said = new.setdefault(row, [])
            said.append(token)
            if bool(ended[place]) or len(said) == max_new_tokens:
                yield row, new.pop(row)
            else:
                stay.append(place)
        if not stay:
            batch = None
            continue
        if len(stay) < len(batch.rows):
            batch = batch.only(stay)
        batch.step(model, tokens[stay])


def can_leave(model: Any) -> bool:
    """Whether rows can leave a model's batch and join it: where its cache holds keys and values of
    all tokens, layer by layer, and nothing else. States that roll over all tokens, and windows,
    cannot be padded."""
    base = model.get_base_model() if hasattr(model, "peft_config") else model
    takes = inspect.signature(base.forward).parameters
    if not {"past_key_values", "position_ids", "logits_to_keep"} <= set(takes):
        return False
    layers = DynamicCache(config=base.config).layers
    return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)


@dataclass
class _Batch:
    """Rows under way.

    Args:
        rows: their numbers.
        cache: keys and values of their tokens so far, padded on the left.
        mask: (B, T) which of those are real.
        logits: (B, V) of each row's next token.
    """

    rows: list[int]
    cache: Any
    mask: Tensor
    logits: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, model: Any, numbers: list[int], rows: Rows) -> _Batch:
        """Prompts read by the model."""
        ids, mask = pad([rows[i] for i in numbers], fill=0, left=True)
        ids, mask = ids.to(model.device), mask.to(model.device)
        positions = (mask.cumsum(dim=1) - 1).clamp_min(0)
        output = model(
            input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True,
            logits_to_keep=1,
        )  # fmt: skip
        return cls(numbers, output.past_key_values, mask, output.logits[:, -1])

    @torch.no_grad()
    def step(self, model: Any, tokens: Tensor) -> None:
        """One more token of each row."""
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], dim=1)
        output = model(
            input_ids=tokens[:, None].to(model.device), attention_mask=self.mask,
            position_ids=self.mask.sum(dim=1, keepdim=True) - 1, past_key_values=self.cache,
            use_cache=True, logits_to_keep=1,
        )  # fmt: skip
        self.cache, self.logits = output.past_key_values, output.logits[:, -1]

    def only(self, places: list[int]) -> _Batch:
        """The batch without the other rows, and without columns that none of these has."""
        at = torch.tensor(places, device=self.mask.device)
        mask = self.mask[at]
        first = int(mask.any(dim=0).int().argmax())
        for layer in self.cache.layers:
            layer.keys = layer.keys[at][:, :, first:].contiguous()
            layer.values = layer.values[at][:, :, first:].contiguous()
        return _Batch([self.rows[i] for i in places], self.cache, mask[:, first:], self.logits[at])

    def joined(self, other: _Batch) -> _Batch:
        """Both as one batch."""
        width = max(self.mask.shape[1], other.mask.shape[1])
        for mine, theirs in zip(self.cache.layers, other.cache.layers, strict=True):
            mine.keys = torch.cat([_wide(mine.keys, width, 2), _wide(theirs.keys, width, 2)])
            mine.values = torch.cat([_wide(mine.values, width, 2), _wide(theirs.values, width, 2)])
        mask = torch.cat([_wide(self.mask, width, 1), _wide(other.mask, width, 1)])
        logits = torch.cat([self.logits, other.logits])
        return _Batch([*self.rows, *other.rows], self.cache, mask, logits)


def _wide(values: Tensor, width: int, dim: int) -> Tensor:
    """With zeros on the left of a dimension, up to a width."""
    shape = list(values.shape)
    shape[dim] = width - shape[dim]
    return torch.cat([values.new_zeros(shape), values], dim=dim) if shape[dim] else values


class GumbelNoise:
    """Gumbel noise on the logits: the argmax is then a draw from softmax(logits / temperature).

    One stream of noise for each row, seeded by its tokens, on the CPU: the same on any device.

    Args:
        rows: all prompts' tokens.
        temperature: above 0.
        seed: another seed, other answers.
    """

    def __init__(self, rows: Sequence[Sequence[int]], temperature: float, seed: int) -> None:
        self.rows, self.temperature, self.seed = rows, temperature, seed
        self.streams: dict[int, torch.Generator] = {}

    def _stream(self, row: int) -> torch.Generator:
        if row not in self.streams:
            facts = repr((self.seed, list(self.rows[row]))).encode()
            digest = hashlib.blake2b(facts, digest_size=8).digest()
            self.streams[row] = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
        return self.streams[row]

    def __call__(self, rows: Sequence[int], scores: torch.Tensor) -> torch.Tensor:
        """The scores of these rows' next tokens."""
        width = scores.shape[-1]
        self.streams = {row: self._stream(row) for row in rows}  # of those that are under way
        draws = [torch.empty(width).exponential_(generator=self._stream(row)) for row in rows]
        gumbel = -torch.stack(draws).log().to(scores.device)
        logits = scores.to(torch.promote_types(torch.float32, scores.dtype))
        return logits / self.temperature + gumbel
