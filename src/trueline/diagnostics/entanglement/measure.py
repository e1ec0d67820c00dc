"""Measuring entanglement: pairs through the gradient products, and through real steps;
and token by token, as a heat map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from trueline.batching import Branch, TokenTree
from trueline.diagnostics.entanglement.ghost import GradientProducts, head_products
from trueline.diagnostics.entanglement.pairs import Array, Entangled
from trueline.diagnostics.entanglement.update import (
    OptimizerUpdate,
    applied,
    gradient_of,
    predicted_change,
)
from trueline.prompts import Progress
from trueline.scoring import Scorer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Stepped:
    """(P, 2) changes of (chosen, rejected) log-probs, nats: promised by the gradients, and real."""

    predicted: Array
    observed: Array


@dataclass(frozen=True)
class Measurement:
    """What the gradients of P pairs say.

    Args:
        pairs: inner products over all trained parameters, with the objective's pulls.
        layers: for each layer (P, 3): its part of <g_w, g_l>, |g_w|^2 and |g_l|^2.
        batch_change: (P, 2) nats for each unit of learning rate, of (chosen, rejected) under a
            step of plain gradient descent on the whole batch.
        gram: the first batch's (2B, 2B) inner products, completions in the order w, l, w, l, ...
        stepped: along the optimizer's update, where one was given.
        explicit: parameters that took one backward pass a completion.
    """

    pairs: Entangled
    layers: Mapping[str, Array]
    batch_change: Array
    gram: Array
    stepped: Stepped | None
    explicit: tuple[str, ...] = ()


def measure(
    scorer: Scorer,
    trees: Sequence[TokenTree],
    pulls: tuple[Array, Array],
    *,
    products: GradientProducts | None,
    batch_size: int,
    step: OptimizerUpdate | None = None,
    progress: Progress | None = None,
) -> Measurement:
    """Inner products of the pairs' gradients, and changes of their log-probs.

    Args:
        scorer: of the policy.
        trees: P pairs.
        pulls: (P,) d_w and (P,) d_l.
        products: of the scorer's model; None for the LM head's gradient alone, a proxy.
        batch_size: pairs in a batch.
        step: from a gradient to an update, to predict and observe the change along it.
        progress: called with (pairs done, all).
    """
    grams: list[Array] = []
    layers: dict[str, list[Array]] = {}
    changes, steps = [], []
    for start in range(0, len(trees), batch_size):
        part = list(trees[start : start + batch_size])
        found = products(part) if products else head_products(scorer, part)
        grams.append(found.total[0].cpu().numpy())
        for layer, block in found.by_layer.items():
            layers.setdefault(layer, []).append(triples(block[0].cpu().numpy()))
        changes.append(batch_change(grams[-1], pulls, start))
        if step is not None:
            steps.append(
                _step(scorer, part, torch.from_numpy(-_descent(pulls, start, len(part))), step)
            )
        if progress is not None:
            progress(start + len(part), len(trees))
    inner, chosen, rejected = np.concatenate([triples(gram) for gram in grams]).T
    return Measurement(
        Entangled(inner, chosen, rejected, *pulls),
        {layer: np.concatenate(parts) for layer, parts in layers.items()},
        np.concatenate(changes),
        grams[0],
        _joined(steps),
        tuple(sorted(products.names[p] for p in products.explicit)) if products else (),
    )


def triples(gram: Array) -> Array:
    """(B, 3) from a (2B, 2B) Gram matrix."""
    diagonal = np.diagonal(gram)
    return np.stack([np.diagonal(gram, 1)[0::2], diagonal[0::2], diagonal[1::2]], axis=1)


def batch_change(gram: Array, pulls: tuple[Array, Array], start: int) -> Array:
    """(B, 2) changes of (chosen, rejected) log-probs under a step of plain gradient descent on the
    mean loss of a whole batch, nats for each unit of learning rate: cross-pair terms included.

    Args:
        gram: (2B, 2B) inner products, completions in the order w, l, w, l, ...
        pulls: (P,) d_w and (P,) d_l of all pairs.
        start: where the batch begins among them.
    """
    return (gram @ _descent(pulls, start, len(gram) // 2)).reshape(-1, 2)


def _descent(pulls: tuple[Array, Array], start: int, count: int) -> Array:
    """(2B,) minus the coefficients of a batch's mean loss: d_w / B and -d_l / B in turns."""
    chosen, rejected = (d[start : start + count] for d in pulls)
    return np.stack([chosen, -rejected], axis=1).flatten() / count


def _step(
    scorer: Scorer, trees: Sequence[TokenTree], coefficients: Tensor, step: OptimizerUpdate
) -> Stepped:
    update = step(gradient_of(scorer, trees, coefficients))
    predicted = predicted_change(scorer, trees, update)
    before = _sums(scorer, trees)
    with applied(scorer.model, update):
        after = _sums(scorer, trees)
    return Stepped(_pairwise(predicted), _pairwise(after - before))


def _sums(scorer: Scorer, trees: Sequence[TokenTree]) -> Tensor:
    batch = scorer.pack(trees)
    with torch.no_grad():
        return batch.sums(scorer(trees, batch).double())


def _pairwise(values: Tensor) -> Array:
    found: Array = values.double().cpu().numpy().reshape(-1, 2)
    return found


def _joined(steps: Sequence[Stepped]) -> Stepped | None:
    if not steps:
        return None
    columns = (np.concatenate([getattr(s, f.name) for s in steps]) for f in fields(Stepped))
    return Stepped(*columns)


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
