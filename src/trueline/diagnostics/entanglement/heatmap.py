"""Token by token: which tokens of a pair entangle its two completions."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from trueline.batching import Branch, TokenTree
from trueline.diagnostics.entanglement.ghost import GradientProducts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LONGEST = 24
"""Scored tokens of each completion in a heat map; a longer one shows its first."""


def token_heat_map(
    products: GradientProducts, tokenizer: PreTrainedTokenizerBase, tree: TokenTree
) -> dict[str, Any]:
    """Cosines between the gradient of each chosen token's log-prob and each rejected token's.

    A completion's gradient is the sum of its tokens', so the entries of ``inner`` add up to
    <g_w, g_l> where nothing was cut.

    Args:
        products: of the policy's gradients.
        tree: one pair.

    Returns:
        Plain data: ``id``; ``chosen`` and ``rejected``, the tokens' texts; ``cosine`` and
        ``inner``, rows for chosen and columns for rejected tokens; ``cut``, whether tokens were
        left out.
    """
    sides = [np.flatnonzero(branch.mask) for branch in tree.branches]
    singles = [
        _single(branch, int(at))
        for branch, places in zip(tree.branches, sides, strict=True)
        for at in places[:LONGEST]
        if at > 0 or len(tree.prompt)  # nothing predicts the first token of all
    ]
    rows = sum(len(tree.prompt) > 0 or at > 0 for at in sides[0][:LONGEST])
    alone = replace(tree, branches=tuple(singles), desirable=(True,) * len(singles))
    gram = products([alone]).total[0].cpu().numpy()
    norms = np.sqrt(np.clip(np.diagonal(gram), 0, None))
    scale = np.outer(norms, norms)
    cosine = np.divide(gram, scale, out=np.zeros_like(gram), where=scale > 0)
    texts = [tokenizer.decode([int(branch.ids[-1])]) for branch in singles]
    return {
        "id": tree.id,
        "chosen": texts[:rows],
        "rejected": texts[rows:],
        "cosine": cosine[:rows, rows:].round(5).tolist(),
        "inner": gram[:rows, rows:].tolist(),
        "cut": any(len(side) > LONGEST for side in sides),
    }


def _single(branch: Branch, at: int) -> Branch:
    """The completion up to one token, which alone is scored."""
    mask = np.zeros(at + 1, dtype=np.bool_)
    mask[at] = True
    return Branch(branch.ids[: at + 1], mask)
