"""The remedies for entangled gradients, from their options to what the step engine calls."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor

from trueline.batching import TokenTree
from trueline.config import AlignmentConfig
from trueline.diagnostics.entanglement.ghost import GradientProducts
from trueline.errors import UserError
from trueline.objectives.base import BoundObjective
from trueline.objectives.weighting import normalized
from trueline.scoring import Scorer
from trueline.training.token_masks import SparseMasks, difference_mask

PENALTY, MASK_LEARNING_RATE = 0.01, 1.0
"""Of learned masks, where not given."""


def check_remedies(args: AlignmentConfig, objective: BoundObjective) -> None:
    """Every remedy that is asked for has an effect on this objective.

    Raises:
        UserError: an unknown value, or an option without effect.
    """
    for name, known in (
        ("pair_weighting", ("normalized",)),
        ("token_mask", ("difference", "sparse")),
    ):
        value = getattr(args, name)
        if value is None:
            continue
        if value not in known:
            raise UserError(f"{name} must be {' or '.join(map(repr, known))}, got {value!r}")
        if objective.layout != "paired":
            raise UserError(
                f"{name} has no effect on objective {objective.spec.name!r}, which looks at "
                "completions one by one; choose an objective of pairs, or leave it out"
            )
    if args.token_mask == "sparse" and not objective.spec.reference:
        raise UserError(
            f"token_mask 'sparse' weighs log-ratios, and objective {objective.spec.name!r} reads "
            "no reference; take token_mask: difference, or an objective with a reference"
        )
    for name in ("token_mask_penalty", "token_mask_learning_rate"):
        if getattr(args, name) is not None and args.token_mask != "sparse":
            raise UserError(f"{name} has no effect without token_mask: sparse")
    if args.entanglement_pairs is not None and not args.entanglement_steps:
        raise UserError("entanglement_pairs has no effect without entanglement_steps")


def training_mask(args: AlignmentConfig) -> Callable[[TokenTree], TokenTree] | None:
    """The mask of pairs to train on, where it is asked for. Evaluation does without: it speaks of
    whole completions, so that runs with different masks can be compared."""
    return difference_mask if args.token_mask == "difference" else None


def masked(args: AlignmentConfig, trees: list[TokenTree]) -> list[TokenTree]:
    """Pairs with the mask of those that are trained on."""
    mask = training_mask(args)
    return trees if mask is None else [mask(tree) for tree in trees]


def sparse_masks(args: AlignmentConfig, model: Any) -> SparseMasks | None:
    """The masks to learn, or None where none are asked for."""
    if args.token_mask != "sparse":
        return None
    penalty, rate = args.token_mask_penalty, args.token_mask_learning_rate
    return SparseMasks(
        model.get_input_embeddings().weight.shape[0],
        penalty=PENALTY if penalty is None else penalty,
        learning_rate=MASK_LEARNING_RATE if rate is None else rate,
        device=args.device,
    )


class PairNormalizer:
    """Reshapes a micro-batch's coefficients to the pairwise normalized gradient.

    The norms are those of the present weights, without dropout, of what the objective looks at:
    under learned masks, of the weighted sums. A pair's coefficients depend on its own two norms
    alone, so any split of the effective batch gives the same update. It costs one more forward and
    backward pass.

    Args:
        scorer: of the policy.
        masks: learned token masks, if any.
        autocast: the training's precision context.
    """

    def __init__(
        self,
        scorer: Scorer,
        masks: SparseMasks | None = None,
        autocast: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext,
    ) -> None:
        self.scorer = scorer
        self.masks = masks
        self.autocast = autocast
        self._products: GradientProducts | None = None

    def __call__(self, trees: Sequence[TokenTree], coefficients: Tensor) -> Tensor:
        """(2B,) new coefficients of these pairs; none stay none (an idle rank)."""
        if not len(coefficients):
            return coefficients
        with self.autocast():
            if self._products is None:
                self._products = GradientProducts(self.scorer)
            squares = self._products(trees, group=1, weights=self._weights(trees))
        return normalized(coefficients, squares.total.flatten().clamp_min(0.0).sqrt())

    def _weights(self, trees: Sequence[TokenTree]) -> Tensor | None:
        if self.masks is None:
            return None
        labels = [label for tree in trees for label in tree.desirable]
        return self.masks.weights(self.scorer.pack(trees), labels)
