"""From a name and options to something a diffusion step can call.

A name is first looked up among the diffusion objectives. Any paired objective with a reference of
:mod:`trueline.objectives` applies as well, with -L/2 for a log-prob: ``diffusion_dpo`` is ``dpo``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from trueline.diffusion.declare import (
    DIFFUSION_OBJECTIVES,
    DiffusionObjective,
    epsilon_message,
)
from trueline.diffusion.models.predictions import AnyPredictions, PairedPredictions, Space
from trueline.diffusion.objectives import sdpo
from trueline.errors import UserError
from trueline.logprobs import CompletionLogProbs, PairedLogProbs
from trueline.objectives import OBJECTIVES, Objective, coefficients
from trueline.objectives.base import BoundObjective, checked
from trueline.registry import UnknownNameError, nearest

NEEDS_TEXT = {
    "r_dpo": "it weighs lengths, and images have none; use diffusion_dpo",
    "e_dpo": "its reference reads another prompt; use diffusion_dpo",
}


@dataclass(frozen=True)
class BoundDiffusion:
    """An objective with its options, checked: what a training step calls.

    Args:
        spec: the objective.
        options: a value for each of its options.
        sdpo_mu: the SDPO safeguard's mu, or None without it.
    """

    spec: DiffusionObjective
    options: Mapping[str, Any]
    sdpo_mu: float | None = None

    @property
    def beta(self) -> float:
        """The scale of rewards in metrics; 1 where the objective has no beta."""
        return float(self.options.get("beta", 1.0))

    @property
    def one_sided(self) -> bool:
        """Whether no gradient reaches the rejected images' predictions."""
        return self.spec.one_sided is not None and self.spec.one_sided(self.options)

    def require_space(self, space: Space) -> None:
        """Check that the objective's constants mean what they say for this model's predictions.

        Raises:
            UserError: it assumes predictions of noise and these are others.
        """
        if self.spec.epsilon_only and space != "epsilon":
            raise UserError(epsilon_message(self.spec.name, space))

    @property
    def meets(self) -> bool:
        """Whether parts of an effective batch must know something of each other."""
        return self.spec.coupled or self.spec.statistic is not None

    def rows(self, batch: AnyPredictions) -> Tensor | None:
        """(n, k) numbers that must meet with the rest of the effective batch; None where none."""
        if self.spec.statistic is not None:
            return self.spec.measure(batch, self.options).double()[:, None]
        if not self.spec.coupled:
            return None
        assert isinstance(batch, PairedPredictions)
        return _rows(batch.logprobs()).double()

    def met(self, whole: Tensor, mine: slice) -> Mapping[str, Tensor]:
        """The arguments that all parts' rows together give this part."""
        if self.spec.statistic is not None:
            return {self.spec.statistic.argument: whole.mean()}
        return _meet(OBJECTIVES[self.spec.name], whole, mine, self.options)

    def losses(self, batch: AnyPredictions, **met: Tensor) -> Tensor:
        """(B,) losses."""
        if self.sdpo_mu is not None:
            assert isinstance(batch, PairedPredictions)
            batch = sdpo(batch, mu=self.sdpo_mu)
        return self.spec.function(batch, **self.options, **met)


def bind_diffusion(
    name: str, options: Mapping[str, Any] | None = None, *, sdpo_mu: float | None = None
) -> BoundDiffusion:
    """Look up an objective and give it its options.

    Args:
        name: a diffusion objective's name, or that of a paired objective with a reference.
        options: values by option name.
        sdpo_mu: put the SDPO safeguard before it.

    Raises:
        UserError: an unknown name; an objective that cannot be had on images; an option that it
            does not have, of the wrong type or out of range.

    Example:
        >>> bind_diffusion("dspo", {"beta": 0.05}).options
        {'beta': 0.05, 'detach': False}
        >>> bind_diffusion("ipo").spec.source[:15]
        'Azar et al. 202'
    """
    spec = find(name)
    values = checked(spec, options or {})
    if sdpo_mu is not None:
        if spec.layout != "paired":
            raise UserError(
                f"sdpo_mu has no effect on objective {spec.name!r}, which reads no pairs; "
                "leave it out"
            )
        if not 0 <= sdpo_mu < 1:
            raise UserError(f"sdpo_mu must be in [0, 1), got {sdpo_mu}")
    bound = BoundDiffusion(spec, values, sdpo_mu)
    if sdpo_mu is not None and bound.one_sided:
        raise UserError(
            f"sdpo_mu has no effect on objective {spec.name!r} with these options: no gradient "
            "reaches the rejected images; leave it out"
        )
    return bound


def find(name: str) -> DiffusionObjective:
    """A diffusion objective, or a language model's objective over denoising errors.

    Raises:
        UnknownNameError: there is none; the message names the nearest.
        UserError: it cannot be had on images.
    """
    if name in DIFFUSION_OBJECTIVES:
        return DIFFUSION_OBJECTIVES[name]
    if name not in OBJECTIVES:
        known = [*DIFFUSION_OBJECTIVES, *carried_over()]
        raise UnknownNameError(
            f"unknown diffusion objective {name!r}{nearest(name, known)} (known: "
            f"{', '.join(DIFFUSION_OBJECTIVES)}, and paired objectives with a reference)"
        )
    spec = OBJECTIVES[name]
    refusal = _refusal(spec)
    if refusal is not None:
        raise UserError(f"objective {name!r} cannot be had on images: {refusal}")
    return from_language(spec)


def carried_over() -> list[str]:
    """Names of the language models' objectives that apply to images."""
    return [name for name, spec in OBJECTIVES.items() if _refusal(spec) is None]


def _refusal(spec: Objective) -> str | None:
    if spec.name in NEEDS_TEXT:
        return NEEDS_TEXT[spec.name]
    if spec.layout != "paired" or not spec.reference:
        return (
            "only paired objectives with a reference carry over to denoising errors; see "
            f"{', '.join(DIFFUSION_OBJECTIVES)}"
        )
    if spec.statistic is not None:
        return f"its {spec.statistic.argument} is kept over steps of a language model's training"
    return None


def from_language(spec: Objective) -> DiffusionObjective:
    """A paired objective with a reference, over log-probs -L/2 and -R/2."""
    function: Callable[..., Tensor] = _coupled if spec.coupled else partial(_uncoupled, spec)
    return DiffusionObjective(
        name=spec.name, function=function, layout="paired", reference=True, coupled=spec.coupled,
        equation=spec.equation, source=spec.source, options=spec.options, declared=spec.declared,
    )  # fmt: skip


def _uncoupled(spec: Objective, pairs: PairedPredictions, **options: Any) -> Tensor:
    losses = spec.function(pairs.logprobs(), **options)
    # a loss of class means: each pair's share of it is the whole, since classes are equally large
    return losses.expand(len(pairs)) if losses.dim() == 0 else losses


def _coupled(pairs: PairedPredictions, *, value: Tensor, slopes: Tensor, **options: Any) -> Tensor:
    """The effective batch's loss by value, and by gradient sum_i c_i log-prob_i of these rows."""
    chosen, rejected = -pairs.chosen.error / 2, -pairs.rejected.error / 2
    c_w, c_l = slopes.to(chosen).unbind(1)
    linear = c_w * chosen + c_l * rejected
    return value.to(linear) + (linear - linear.detach())


def _rows(pairs: PairedLogProbs) -> Tensor:
    chosen, rejected = pairs.chosen, pairs.rejected
    assert chosen.reference is not None
    assert rejected.reference is not None
    columns = (chosen.policy, rejected.policy, chosen.reference, rejected.reference)
    return torch.stack([column.detach() for column in columns], dim=1)


def _meet(
    spec: Objective, whole: Tensor, mine: slice, options: Mapping[str, Any]
) -> Mapping[str, Tensor]:
    """The whole batch's loss, and N times its derivative by each of this part's log-probs, since
    the step divides by N."""
    chosen, rejected, chosen_reference, rejected_reference = whole.unbind(1)
    ones = torch.ones_like(chosen)

    def loss(policy: Tensor) -> Tensor:
        pairs = PairedLogProbs(
            CompletionLogProbs(policy[: len(ones)], ones, chosen_reference),
            CompletionLogProbs(policy[len(ones) :], ones, rejected_reference),
        )
        return BoundObjective(spec, options).loss(pairs)

    value, slopes = coefficients(loss, torch.cat([chosen, rejected]))
    both = torch.stack([slopes[: len(ones)], slopes[len(ones) :]], dim=1)
    return {"value": value, "slopes": both[mine] * len(ones)}
