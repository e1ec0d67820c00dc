"""The LM head's own gradient: a proxy for entanglement that needs no backward pass.

With hidden states h and next-token probabilities s, for two scored tokens y and y',

    <grad log s_i[y], grad log s_j[y']> = <h_i, h_j> (1{y = y'} - s_i[y'] - s_j[y] + <s_i, s_j>)

in the head's weights alone. Every other layer is left out, which can turn the sign.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trueline.batching import PackedBatch, TokenTree, pack
from trueline.diagnostics.entanglement.ghost import SEPARATE, Products
from trueline.scoring import Scorer, evaluating
from trueline.scoring.scorer import packed_log_probs, plain_log_probs


def head_products(scorer: Scorer, trees: Sequence[TokenTree]) -> Products:
    """All inner products of the trees' completions in the LM head's weights, one forward pass."""
    head = scorer.core.get_output_embeddings()
    batch = pack(trees, share=False).to(head.weight.device)
    with torch.no_grad(), evaluating(scorer.model):
        tokens, hidden, logits = _watched(scorer, head, trees, batch)
        kernel = _kernel(hidden, logits, batch.targets, _softcap(scorer))
        owners, count = batch.owners, len(batch.length)
        half = kernel.new_zeros(count, len(owners)).index_add_(0, owners, kernel)
        gram = kernel.new_zeros(count, count).index_add_(1, owners, half)
        return Products(tokens, {"lm_head": gram[None].double()})


def _kernel(hidden: Tensor, logits: Tensor, targets: Tensor, softcap: float | None) -> Tensor:
    """(M, M) inner products of single tokens' gradients."""
    hidden, logits = hidden.to(_wide(hidden)), logits.to(_wide(logits))
    if softcap is None:
        s = logits.softmax(-1)
        same = (targets[:, None] == targets[None]).to(s.dtype)
        other = s[:, targets]  # s_i[y_j]
        return (hidden @ hidden.T) * (same - other - other.T + s @ s.T)
    squashed = torch.tanh(logits / softcap)
    slope = nn.functional.one_hot(targets, logits.shape[-1]) - (softcap * squashed).softmax(-1)
    slope = slope * (1 - squashed**2)
    return (hidden @ hidden.T) * (slope @ slope.T)


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(torch.float32, tensor.dtype)


def _softcap(scorer: Scorer) -> float | None:
    return getattr(scorer.core.config.get_text_config(), "final_logit_softcapping", None)


def _watched(
    scorer: Scorer, head: nn.Module, trees: Sequence[TokenTree], batch: PackedBatch
) -> tuple[Tensor, Tensor, Tensor]:
    """(M,) log-probs with the head's inputs (M, d) and outputs (M, V) at the scored tokens."""
    seen: list[tuple[Tensor, Tensor]] = []

    def note(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        seen.append((inputs[0], output))

    handle = head.register_forward_hook(note)
    try:
        if scorer.fast:
            return packed_log_probs(scorer.core, batch, SEPARATE), *seen[0]
        tokens = plain_log_probs(scorer.model, batch, trees)
    finally:
        handle.remove()
    rows, columns = _places(trees)
    return tokens, seen[0][0][rows, columns], seen[0][1][rows, columns]


def _places(trees: Sequence[TokenTree]) -> tuple[list[int], list[int]]:
    """Row and column, in padded rows, of what predicts each scored token."""
    rows: list[int] = []
    columns: list[int] = []
    flat = ((tree, branch) for tree in trees for branch in tree.branches)
    for row, (tree, branch) in enumerate(flat):
        at = np.flatnonzero(branch.mask) + len(tree.prompt) - 1
        columns += at[at >= 0].tolist()
        rows += [row] * int((at >= 0).sum())
    return rows, columns
