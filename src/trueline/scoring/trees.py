"""Scoring many token trees without gradient, within a budget of tokens a pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from trueline.batching import TokenTree, within_budget
from trueline.scoring.scorer import scoring

TOKEN_BUDGET = 8192
"""Tokens scored in one forward pass unless said otherwise."""


def score_trees(
    model: nn.Module, trees: Sequence[TokenTree], *, max_tokens: int = TOKEN_BUDGET
) -> Iterator[tuple[Tensor, Tensor]]:
    """Log-probs of every tree's completions, by the fast scorer, tree after tree.

    Dropout is off, no gradient is kept, and the model is left as it was.

    Args:
        model: a causal language model, with or without adapters.
        trees: what is scored.
        max_tokens: tokens in one forward pass; a longer tree goes alone.

    Yields:
        For each tree, in order, its n completions' (n,) sums of log-probs over the scored tokens
        (float64, nats) and (n,) numbers of those tokens, on the CPU.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> from trueline.batching import Branch
        >>> import numpy as np
        >>> config = LlamaConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        ...                      intermediate_size=16, vocab_size=32)
        >>> answer = Branch(np.array([5, 6], dtype=np.int32), np.ones(2, dtype=bool))
        >>> tree = TokenTree(np.array([3, 4], dtype=np.int32), (answer,), (None,))
        >>> [(sums.shape, lengths.tolist()) for sums, lengths in
        ...  score_trees(LlamaForCausalLM(config), [tree])]
        [(torch.Size([1]), [2])]
    """
    with scoring(model) as scorer:
        for batch in within_budget(trees, max_tokens):
            with torch.inference_mode():  # not around the yield: it would reach the caller
                packed = scorer.pack(batch)
                sums = packed.sums(scorer(batch, packed).double()).cpu()
                counts = [len(tree.branches) for tree in batch]
                parts = zip(sums.split(counts), packed.length.cpu().split(counts), strict=True)
            yield from parts
