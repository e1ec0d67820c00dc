"""Predictions of noised images: the only thing a diffusion objective sees of a model.

For a noised image the model predicts a tensor e and the schedule knows its target. What a language
model's log-prob is to the other objectives, here is minus half the error:

    L = mean (e - target)^2,    R = the same of the reference,    log-prob = -L / 2

The mean is over a picture's elements. With it, beta times the log-ratio (R - L) / 2 is the implicit
reward for every objective, and the preference logit is the papers'

    z = -(beta / 2) [(L_w - L_l) - (R_w - R_l)]
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from trueline.logprobs import CompletionLogProbs, PairedLogProbs, check_labels, check_pairs

Space: TypeAlias = Literal["epsilon", "v", "flow"]
"""What a model predicts: the noise; alpha noise - sigma image; noise - image (flow matching)."""


@dataclass(frozen=True)
class Predictions:
    """Predictions of B noised images, with what they should have been.

    Args:
        policy: (B, ...) predictions of the model that is trained.
        target: (B, ...) what it was to predict, in the same space.
        reference: (B, ...) the frozen reference's predictions; None where there is no reference.
        space: what ``target`` is.

    Raises:
        ValueError: the shapes differ.

    Example:
        >>> import torch
        >>> p = Predictions(torch.tensor([[3.0, 1.0]]), torch.zeros(1, 2), torch.zeros(1, 2))
        >>> p.error.item(), p.log_ratio.item()
        (5.0, -2.5)
    """

    policy: Tensor
    target: Tensor
    reference: Tensor | None = None
    space: Space = "epsilon"

    def __post_init__(self) -> None:
        for name in ("target", "reference"):
            value = getattr(self, name)
            if value is not None and value.shape != self.policy.shape:
                raise ValueError(
                    f"{name} must have the policy's shape {tuple(self.policy.shape)}, "
                    f"got {tuple(value.shape)}"
                )

    @property
    def residual(self) -> Tensor:
        """(B, ...) e - target."""
        return self.policy - self.target

    @property
    def drift(self) -> Tensor:
        """(B, ...) e - r, policy minus reference. Raises ValueError without a reference."""
        return self.policy - self._reference()

    @property
    def error(self) -> Tensor:
        """(B,) L, the mean squared error of the policy."""
        return mean_square(self.residual)

    @property
    def reference_error(self) -> Tensor:
        """(B,) R, the mean squared error of the reference."""
        return mean_square(self._reference() - self.target)

    @property
    def log_ratio(self) -> Tensor:
        """(B,) (R - L) / 2."""
        return (self.reference_error - self.error) / 2

    def _reference(self) -> Tensor:
        if self.reference is None:
            raise ValueError(
                "this objective needs the reference's predictions, and there are none; give a "
                "reference, or choose an objective without one (diffusion_sft, mapo)"
            )
        return self.reference

    def logprobs(self) -> CompletionLogProbs:
        """-L/2 and -R/2 as log-probs of completions of length 1."""
        reference = None if self.reference is None else -self.reference_error / 2
        error = self.error
        return CompletionLogProbs(-error / 2, torch.ones_like(error), reference)

    def __len__(self) -> int:
        return len(self.policy)

    def map(self, function: Callable[[Tensor], Tensor]) -> Predictions:
        """Apply ``function`` to every tensor: indexing, casting, detaching."""
        reference = None if self.reference is None else function(self.reference)
        return Predictions(function(self.policy), function(self.target), reference, self.space)


@dataclass(frozen=True)
class PairedPredictions:
    """B preference pairs: predictions of the chosen and the rejected images, at the same noise and
    the same timestep."""

    chosen: Predictions
    rejected: Predictions

    def __post_init__(self) -> None:
        check_pairs(len(self.chosen), len(self.rejected))

    @property
    def margin(self) -> Tensor:
        """(B,) z / beta = -[(L_w - L_l) - (R_w - R_l)] / 2."""
        return self.chosen.log_ratio - self.rejected.log_ratio

    @property
    def space(self) -> Space:
        return self.chosen.space

    def logprobs(self) -> PairedLogProbs:
        """What an objective of ``trueline.objectives`` takes."""
        return PairedLogProbs(self.chosen.logprobs(), self.rejected.logprobs())

    def __len__(self) -> int:
        return len(self.chosen)


@dataclass(frozen=True)
class LabeledPredictions:
    """Predictions of B images, each desirable or not.

    Args:
        predictions: of all of them.
        desirable: (B,) bool.
    """

    predictions: Predictions
    desirable: Tensor

    def __post_init__(self) -> None:
        check_labels(self.desirable, len(self.predictions))

    @property
    def space(self) -> Space:
        return self.predictions.space

    def __len__(self) -> int:
        return len(self.predictions)


AnyPredictions: TypeAlias = Predictions | PairedPredictions | LabeledPredictions


def mean_square(values: Tensor) -> Tensor:
    """(B,) means of squares over all other dimensions."""
    return values.square().flatten(1).mean(1)


def per_image(weights: Tensor, like: Tensor) -> Tensor:
    """(B,) weights, shaped to multiply (B, ...) images."""
    return weights.view(-1, *[1] * (like.dim() - 1))
