"""What a real optimizer step does: its update, what it promises to first order, what it does."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from trueline.batching import PackedBatch, TokenTree
from trueline.errors import UserError
from trueline.scoring import Scorer, evaluating
from trueline.scoring.scorer import Shortcuts, packed_log_probs, plain_log_probs

Update: TypeAlias = Mapping[str, Tensor]
"""A change of trained parameters, or their gradient, by name."""

OptimizerUpdate: TypeAlias = Callable[[Update], Update]
"""From the gradient of the loss to the change of the parameters that one step makes."""


def sgd_update(learning_rate: float) -> OptimizerUpdate:
    """Plain gradient descent: -learning_rate times the gradient.

    Example:
        >>> sgd_update(0.5)({"w": torch.tensor([2.0])})
        {'w': tensor([-1.])}

    Raises:
        UserError: the learning rate is not a positive number.
    """
    if not 0 < learning_rate < math.inf:
        raise UserError(f"the learning rate of an update must be positive, got {learning_rate}")
    return lambda gradient: {name: -learning_rate * g for name, g in gradient.items()}


def update_of(
    optimizer: torch.optim.Optimizer, model: nn.Module, *, max_grad_norm: float | None = None
) -> OptimizerUpdate:
    """The step that an optimizer would make now, momentum and all; neither it nor the model moves.

    Args:
        optimizer: of the model's parameters (or accelerate's wrapper around one).
        model: whose trained parameters it optimizes.
        max_grad_norm: clip the gradient's norm first, as the trainer does; None does not.
    """
    inner = getattr(optimizer, "optimizer", optimizer)
    names = {p: name for name, p in model.named_parameters()}

    def update(gradient: Update) -> Update:
        copies = {p: p.detach().clone() for group in inner.param_groups for p in group["params"]}
        groups = [
            {**group, "params": [copies[p] for p in group["params"]]}
            for group in inner.param_groups
        ]
        kind: Any = type(inner)
        stand_in = kind(groups)
        stand_in.load_state_dict(copy.deepcopy(inner.state_dict()))
        for p, twin in copies.items():
            if names.get(p) in gradient:
                twin.grad = gradient[names[p]].to(twin).clone()
        if max_grad_norm:
            torch.nn.utils.clip_grad_norm_(list(copies.values()), max_grad_norm)
        stand_in.step()
        return {names[p]: twin - p.detach() for p, twin in copies.items() if p in names}

    return update


def gradient_of(
    scorer: Scorer, trees: Sequence[TokenTree], coefficients: Tensor
) -> dict[str, Tensor]:
    """The gradient of sum_i c_i log pi(y_i|x_i) in the trained parameters.

    Args:
        coefficients: (C,) of the trees' completions, in order.
    """
    parameters = {n: p for n, p in scorer.model.named_parameters() if p.requires_grad}
    batch = scorer.pack(trees)
    with torch.enable_grad(), evaluating(scorer.model):
        values = batch.sums(scorer(trees, batch))
        total = (values * coefficients.to(values)).sum()
        gradients = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    found = zip(parameters, gradients, strict=True)
    return {name: gradient for name, gradient in found if gradient is not None}


def predicted_change(scorer: Scorer, trees: Sequence[TokenTree], update: Update) -> Tensor:
    """(C,) <g_i, update>: each completion's change of log-prob to first order, in one
    Jacobian-vector product.

    Attention takes its plain form, since fused kernels have no forward mode.
    """
    values = dict(scorer.model.named_parameters())
    at = {name: values[name].detach() for name in update}
    along = {name: delta.to(values[name]) for name, delta in update.items()}
    batch = scorer.pack(trees)
    score = _Score(scorer, trees, batch)

    def log_probs(parameters: Mapping[str, Tensor]) -> Tensor:
        given = {f"model.{name}": value for name, value in parameters.items()}
        return batch.sums(functional_call(score, given, ()))

    with torch.no_grad(), evaluating(scorer.model), sdpa_kernel(SDPBackend.MATH):
        return jvp(log_probs, (at,), (along,))[1]


class _Score(nn.Module):
    """Scoring as a module, so that its parameters can be replaced for one call."""

    def __init__(self, scorer: Scorer, trees: Sequence[TokenTree], batch: PackedBatch) -> None:
        super().__init__()
        self.model = scorer.model
        self._run: Callable[[], Any] = lambda: (
            packed_log_probs(scorer.core, batch, Shortcuts(chunked_head=False))
            if scorer.fast
            else plain_log_probs(scorer.model, batch, trees)
        )

    def forward(self) -> Any:
        return self._run()


@contextmanager
def applied(model: nn.Module, update: Update) -> Iterator[None]:
    """The model with the update added to its parameters; bit for bit as before afterwards."""
    parameters = dict(model.named_parameters())
    before = {name: parameters[name].detach().clone() for name in update}
    try:
        with torch.no_grad():
            for name, delta in update.items():
                parameters[name].add_(delta.to(parameters[name]))
        yield
    finally:
        with torch.no_grad():
            for name, value in before.items():
                parameters[name].copy_(value)
