"""Entanglement: why the chosen log-probs fall although the margin grows.

A preference loss pushes the chosen up and the rejected down, but both by changing the same
parameters. Where their gradients overlap, each push drags the other completion along.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from trueline.diagnostics.entanglement.ghost import GradientProducts
from trueline.diagnostics.entanglement.measure import measure, token_heat_map
from trueline.diagnostics.entanglement.pairs import pulls, statistics_of
from trueline.diagnostics.entanglement.scores import Reference, draw_pairs, pair_log_probs
from trueline.diagnostics.entanglement.update import OptimizerUpdate, sgd_update
from trueline.diagnostics.entanglement.words import finding
from trueline.errors import UserError
from trueline.objectives import bind
from trueline.prompts import Progress
from trueline.records import Example
from trueline.results import Finding
from trueline.scoring import scoring

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Method: TypeAlias = Literal["exact", "head"]


def entanglement(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Iterable[Example],
    *,
    objective: str | Sequence[str] = "dpo",
    options: Mapping[str, Any] | None = None,
    reference: Reference = None,
    max_pairs: int = 64,
    batch_size: int = 8,
    optimizer_update: OptimizerUpdate | float | None = None,
    per_layer: bool = True,
    heat_maps: int = 2,
    method: Method = "exact",
    max_length: int | None = 1024,
    seed: int = 0,
    progress: Progress | None = None,
) -> Finding:
    """Whether a step on preference pairs moves chosen and rejected apart, or drags both along.

    For each pair, with g_w and g_l the gradients of log pi(y_w|x) and log pi(y_l|x) in all trained
    parameters: <g_w, g_l>, both norms, the cosine, and, with the objective's pulls d_w and d_l,
    which way a small step moves either log-prob. Dropout is off; the model is left as it was.

    Args:
        model: the policy. Parameters that require no gradient do not count, so with a LoRA
            adapter the adapter's alone do.
        tokenizer: its tokenizer.
        examples: preference pairs, held-out ones to speak of training as a whole.
        objective: a name, or several that are added up; any objective at all.
        options: its options.
        reference: a model, or (chosen, rejected) log-probs of every pair of the examples in order,
            nats. None takes the base under an adapter, and else the policy as it stands, which is
            where training starts.
        max_pairs: measure so many pairs, drawn at random.
        batch_size: pairs in a step and in a forward pass. The Gram matrix, and the change under a
            step on a whole batch, are taken within batches of this size.
        optimizer_update: from the gradient of a batch's loss to the update one step makes; see
            :func:`~trueline.diagnostics.entanglement.update.update_of`. A number is the learning
            rate of plain gradient descent. Given, the change along that very update is
            predicted and observed.
        per_layer: also break the inner products down by layer.
        heat_maps: for how many of the most entangled pairs to compare token with token.
        method: ``"exact"``, or ``"head"`` for the LM head's gradient alone: one forward pass, and a
            proxy only.
        max_length: tokens of prompt and completion, as in training.
        seed: of the draw.
        progress: called with (pairs done, all).

    Returns:
        A finding with metrics ``entangle/*``, what to try, and figures ``pairs``, ``gram``,
        ``layers`` and ``heat_maps``. Changes are in nats, for each unit of learning rate of plain
        gradient descent; those along an update are in nats.

    Raises:
        UserError: no preference pair, a reference given to a reference-free objective, options
            that would have no effect, log-probs that are not finite.

    Source: Yuan et al. 2024, arXiv 2410.13828, sections 3 and 4.
    """
    _check(method, optimizer_update, heat_maps, max_pairs, batch_size)
    bound = bind(objective, options)
    if reference is not None and not bound.spec.reference:
        raise UserError(f"objective {bound.spec.name!r} reads no reference; leave it out")
    trees, groups, places = draw_pairs(
        tokenizer, examples, max_pairs=max_pairs, max_length=max_length, seed=seed
    )
    step = optimizer_update if callable(optimizer_update) else None
    if isinstance(optimizer_update, int | float):
        step = sgd_update(optimizer_update)
    with scoring(model) as scorer:
        pairs, strangers = pair_log_probs(
            scorer, trees, bound.spec, reference, places, size=batch_size, seed=seed
        )
        products = GradientProducts(scorer) if method == "exact" else None
        found = measure(
            scorer,
            trees,
            pulls(bound, pairs, statistics_of(bound, pairs, strangers)),
            products=products,
            batch_size=batch_size,
            step=step,
            progress=progress,
        )
        most = np.argsort(-found.pairs.cosine, kind="stable")[:heat_maps]
        maps = [token_heat_map(products, tokenizer, trees[i]) for i in most] if products else []
    return finding(
        found,
        objective=bound.spec.name,
        ids=[tree.id or f"pair {place}" for tree, place in zip(trees, places, strict=True)],
        groups=groups,
        per_layer=per_layer,
        heat_maps=maps,
        proxy=method == "head",
    )


def _check(
    method: str,
    update: OptimizerUpdate | float | None,
    heat_maps: int,
    max_pairs: int,
    batch_size: int,
) -> None:
    if method not in ("exact", "head"):
        raise UserError(f"method must be 'exact' or 'head', got {method!r}")
    if method == "head" and (update is not None or heat_maps):
        raise UserError(
            "method='head' looks at the LM head alone; leave optimizer_update out and set "
            "heat_maps to 0, since neither would have an effect"
        )
    if max_pairs < 2 or batch_size < 1 or heat_maps < 0:
        raise UserError(
            "max_pairs must be at least 2, batch_size at least 1 and heat_maps at least 0, got "
            f"{max_pairs}, {batch_size} and {heat_maps}"
        )
