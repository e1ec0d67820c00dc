"""Two tiny batches for documentation and tests, small enough to check an objective by hand."""

from __future__ import annotations

import torch

from trueline.logprobs import CompletionLogProbs, PairedLogProbs, UnpairedLogProbs


def _completions(
    policy: list[float], reference: list[float], length: list[int]
) -> CompletionLogProbs:
    values = [torch.tensor(x, dtype=torch.float64) for x in (policy, reference)]
    return CompletionLogProbs(values[0], torch.tensor(length), values[1])


PAIR = PairedLogProbs(_completions([-40], [-42], [20]), _completions([-55], [-50], [50]))
"""One pair: a = -40, b = -55, log-ratios u = 2 and v = -5, lengths 20 and 50 (float64)."""

BATCH = UnpairedLogProbs(
    _completions([-40, -31, -19, -55], [-42, -30, -20, -50], [20, 10, 10, 50]),
    torch.tensor([True, True, False, False]),
)
"""Desirable completions with log-ratios 2 and -1, undesirable ones with 1 and -5 (float64)."""
