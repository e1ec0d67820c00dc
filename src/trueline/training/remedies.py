"""The remedies for entangled gradients, from their options to what the step engine calls.

What chosen and rejected share entangles their gradients. The difference mask leaves it out; learned
masks weigh each kind of token by what it is worth to the objective.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from difflib import SequenceMatcher
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from trueline.batching import Branch, Mask, PackedBatch, TokenTree
from trueline.config import AlignmentConfig
from trueline.diagnostics.entanglement.ghost import GradientProducts
from trueline.errors import UserError
from trueline.objectives.base import BoundObjective
from trueline.objectives.weighting import normalized
from trueline.scoring import Scorer
from trueline.training.coupling import world_size

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


def difference_mask(tree: TokenTree) -> TokenTree:
    """The pair with only those tokens scored that its two completions do not share.

    Shared are the tokens of the longest common block, and, on either side of it, of the longest
    common blocks there (Ratcliff and Obershelp's matching): common beginnings, endings and
    stretches between. A completion that has nothing of its own keeps the token at which the two
    part, or, where it ends there, its last. Two equal completions stay as they are.

    Policy and reference see the same tokens, and a completion's length counts those alone.

    Example:
        >>> ids = lambda *x: np.array(x, dtype=np.int32)
        >>> branch = lambda *x: Branch(ids(*x), np.ones(len(x), dtype=bool))
        >>> pair = TokenTree(ids(1), (branch(5, 6, 9), branch(5, 7, 8, 9)), (True, False))
        >>> [b.mask.astype(int).tolist() for b in difference_mask(pair).branches]
        [[0, 1, 0], [0, 1, 1, 0]]
    """
    chosen, rejected = tree.branches
    if np.array_equal(chosen.ids, rejected.ids):
        return tree
    matcher = SequenceMatcher(None, chosen.ids.tolist(), rejected.ids.tolist(), autojunk=False)
    own = [np.ones(len(branch.ids), dtype=np.bool_) for branch in tree.branches]
    for block in matcher.get_matching_blocks():
        own[0][block.a : block.a + block.size] = False
        own[1][block.b : block.b + block.size] = False
    shortest = min(len(chosen.ids), len(rejected.ids))
    apart = np.flatnonzero(chosen.ids[:shortest] != rejected.ids[:shortest])
    parting = int(apart[0]) if len(apart) else shortest
    pairs = zip(tree.branches, own, strict=True)
    branches = tuple(_masked(b, mask, parting, bool(len(tree.prompt))) for b, mask in pairs)
    return replace(tree, branches=branches)


def _masked(branch: Branch, own: Mask, parting: int, prompted: bool) -> Branch:
    """The branch with its own scored tokens, or with the one that stands for them."""
    able = branch.mask.copy()
    if not prompted:
        able[0] = False  # nothing predicts the first token of all
    if not (able & own).any():
        places = np.flatnonzero(able)
        if not len(places):
            return branch  # pack() names it: it has no scored token, masked or not
        later = places[places >= parting]
        own = np.zeros_like(able)
        own[later[0] if len(later) else places[-1]] = True
    return Branch(branch.ids, able & own)


class SparseMasks:
    """Weights m in [0, 1] for chosen and for rejected tokens, learned with a price on each.

        L = l(sum_t m_w u_t, sum_t m_l v_t) + penalty (|m_w|_1 + |m_l|_1),   mean over pairs

    u_t and v_t are the tokens' log-ratios and l is the objective's loss of a pair. There is one
    weight for each word of the vocabulary on either side, all 1 at the start; after every step they
    go down their own gradient, (dl/dsum) u_t + penalty for each occurrence, and are cut off at 0
    and 1, so that tokens which do not earn their price end at exactly 0.

    Inspired by the sparse masks that the paper proposes; where a weight is kept and how it is
    learned is chosen here. A mask can also hide a chosen token that falls: judge by log-probs of
    whole completions.

    Args:
        size: of the vocabulary.
        penalty: the price of a token with weight 1, nats of loss.
        learning_rate: of the weights' plain gradient descent.
        device: where they are.

    Source: after Yuan et al. 2024, arXiv 2410.13828, section 5.
    """

    def __init__(
        self,
        size: int,
        *,
        penalty: float,
        learning_rate: float,
        device: torch.device | str = "cpu",
    ) -> None:
        if penalty <= 0 or learning_rate <= 0:
            raise UserError(
                "token_mask_penalty and token_mask_learning_rate must be positive, got "
                f"{penalty} and {learning_rate}"
            )
        self.penalty = penalty
        self.learning_rate = learning_rate
        self.values = torch.ones(2, size, device=device)
        self._slope = torch.zeros(2, size, dtype=torch.float64, device=device)
        self._sums = torch.zeros(2, 2, dtype=torch.float64, device=device)
        self._seen: tuple[Tensor, Tensor, Tensor] | None = None

    def weights(self, batch: PackedBatch, chosen: Sequence[bool]) -> Tensor:
        """(M,) the weight of each scored token; ``chosen`` (C,) tells the sides apart."""
        return self.values.flatten()[self._places(batch, chosen)]

    def _places(self, batch: PackedBatch, chosen: Sequence[bool]) -> Tensor:
        side = (~torch.tensor(chosen, device=batch.owners.device)).long()
        return side[batch.owners] * self.values.shape[1] + batch.targets

    def sums(
        self, batch: PackedBatch, chosen: Sequence[bool], policy: Tensor, reference: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(C,) weighted sums of both models' (M,) log-probs, remembered for :meth:`learn`."""
        places = self._places(batch, chosen)
        weights = self.values.flatten()[places].to(policy.dtype)
        self._seen = (places, batch.owners, (policy - reference).detach())
        return batch.sums(weights * policy), batch.sums(weights * reference)

    def learn(self, coefficients: Tensor, total: int) -> None:
        """Add the gradient of the micro-batch that was summed last.

        Args:
            coefficients: (C,) dL/dsum of its completions; none of them on an idle rank.
            total: pairs in the whole effective batch, over which the penalty is a mean.
        """
        if not len(coefficients) or self._seen is None:
            return
        places, owners, log_ratios = self._seen
        slopes = coefficients.double()[owners] * log_ratios.double() + self.penalty / total
        self._slope.view(-1).index_add_(0, places, slopes)
        held = self.values.flatten()[places].double()
        size = self.values.shape[1]
        counts = torch.stack([held, torch.ones_like(held)], dim=1)
        self._sums.index_add_(0, places // size, counts)

    def update(self) -> dict[str, float]:
        """One step, the same on every rank; returns the mean weight of each side's tokens and the
        share of words at 0."""
        if world_size() > 1:
            dist.all_reduce(self._slope)
            dist.all_reduce(self._sums)
        step = self.learning_rate * self._slope.to(self.values.dtype)
        self.values = (self.values - step).clamp_(0.0, 1.0)
        (held_w, count_w), (held_l, count_l) = self._sums.tolist()
        self._slope.zero_()
        self._sums.zero_()
        return {
            "masks/chosen": held_w / max(count_w, 1),
            "masks/rejected": held_l / max(count_l, 1),
            "masks/zero": float((self.values == 0).double().mean()),
        }

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""
        return {"values": self.values.cpu()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up where :meth:`state_dict` left off."""
        self.values = state["values"].to(self.values.device)
