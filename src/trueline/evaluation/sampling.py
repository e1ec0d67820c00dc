"""Sampling that depends on the prompt and the seed alone: noise on the logits, row by row."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch


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
