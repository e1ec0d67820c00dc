"""Log-probabilities of completions: the only thing an objective sees of a model.

All values are natural logarithms (nats) in float32 or float64, summed over a completion's tokens
unless a name says otherwise. ``length`` counts scored tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class CompletionLogProbs:
    """Log-probs of B completions under the policy and, where there is one, the reference.

    Args:
        policy: (B,) sums over completion tokens, nats.
        length: (B,) numbers of scored tokens.
        reference: (B,) sums under the reference model, nats; None where there is no reference.
        tokens: scored tokens of all completions to imitate in the whole effective batch, where
            this is a part of it; None where this is the whole.

    Raises:
        ValueError: shapes differ, or a length is not positive.

    Example:
        >>> import torch
        >>> c = CompletionLogProbs(torch.tensor([-4.0]), torch.tensor([2]), torch.tensor([-5.0]))
        >>> c.log_ratio.item(), c.mean.item()
        (1.0, -2.0)
    """

    policy: Tensor
    length: Tensor
    reference: Tensor | None = None
    tokens: int | None = None

    def __post_init__(self) -> None:
        for name in ("policy", "length", "reference"):
            value = getattr(self, name)
            if value is not None and (value.dim() != 1 or value.shape != self.policy.shape):
                raise ValueError(
                    f"{name} must have shape ({self.policy.numel()},) like policy, "
                    f"got {tuple(value.shape)}"
                )

    @property
    def log_ratio(self) -> Tensor:
        """(B,) log pi_theta(y|x) - log pi_ref(y|x), nats. Raises ValueError without a reference."""
        if self.reference is None:
            raise ValueError(
                "this objective needs reference log-probs, and there are none; "
                "give a reference model or choose a reference-free objective"
            )
        return self.policy - self.reference

    @property
    def mean(self) -> Tensor:
        """(B,) log pi_theta(y|x) / |y|, nats per token."""
        return self.policy / self.length

    def __len__(self) -> int:
        return self.policy.numel()

    def map(self, function: Callable[[Tensor], Tensor]) -> CompletionLogProbs:
        """Apply ``function`` to every tensor: indexing, moving, casting, detaching."""
        reference = None if self.reference is None else function(self.reference)
        policy, length = function(self.policy), function(self.length)
        return CompletionLogProbs(policy, length, reference, self.tokens)


@dataclass(frozen=True)
class PairedLogProbs:
    """B preference pairs: ``chosen`` and ``rejected`` completions of the same B prompts."""

    chosen: CompletionLogProbs
    rejected: CompletionLogProbs

    def __post_init__(self) -> None:
        check_pairs(len(self.chosen), len(self.rejected))

    @property
    def margin(self) -> Tensor:
        """(B,) log-ratio of chosen minus log-ratio of rejected, nats."""
        return self.chosen.log_ratio - self.rejected.log_ratio

    def __len__(self) -> int:
        return len(self.chosen)

    def map(self, function: Callable[[Tensor], Tensor]) -> PairedLogProbs:
        """Apply ``function`` to every tensor."""
        return PairedLogProbs(self.chosen.map(function), self.rejected.map(function))


@dataclass(frozen=True)
class UnpairedLogProbs:
    """B completions, each desirable or not.

    Args:
        completions: their log-probs.
        desirable: (B,) bool.
        counts: numbers of desirable and undesirable completions in the whole effective batch, where
            this is a part of it (a micro-batch, a rank); class means divide by them, so that parts
            add up to the whole. None where this is the whole.
    """

    completions: CompletionLogProbs
    desirable: Tensor
    counts: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        check_labels(self.desirable, len(self.completions))

    @property
    def log_ratio(self) -> Tensor:
        """(B,) log-ratios of all completions, nats."""
        return self.completions.log_ratio

    def desirable_mean(self, values: Tensor) -> Tensor:
        """Mean of (B,) ``values`` over the desirable completions: E+; a connected 0 if none."""
        return self._class_mean(values, self.desirable, 0)

    def undesirable_mean(self, values: Tensor) -> Tensor:
        """Mean of (B,) ``values`` over the undesirable completions: E-; a connected 0 if none."""
        return self._class_mean(values, ~self.desirable, 1)

    def _class_mean(self, values: Tensor, members: Tensor, index: int) -> Tensor:
        total = values.masked_fill(~members, 0.0).sum()
        if self.counts is None:
            return total / members.sum().clamp(min=1)
        return total / max(self.counts[index], 1)

    def __len__(self) -> int:
        return len(self.completions)

    def map(self, function: Callable[[Tensor], Tensor]) -> UnpairedLogProbs:
        """Apply ``function`` to every tensor."""
        return UnpairedLogProbs(
            self.completions.map(function), function(self.desirable), self.counts
        )


def check_pairs(chosen: int, rejected: int) -> None:
    """Raise ValueError unless there are as many chosen as rejected."""
    if chosen != rejected:
        raise ValueError(f"chosen and rejected must pair up, got {chosen} and {rejected}")


def check_labels(desirable: Tensor, count: int) -> None:
    """Raise ValueError unless ``desirable`` is a (count,) bool tensor."""
    if desirable.dtype != torch.bool or desirable.shape != (count,):
        raise ValueError(
            f"desirable must be a bool tensor of shape ({count},), "
            f"got {desirable.dtype} {tuple(desirable.shape)}"
        )
