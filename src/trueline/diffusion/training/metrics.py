"""What a diffusion step says of itself.

``rewards/*`` carry the names the other trainers use; ``rewards/accuracies`` is the implicit
accuracy. ``diffusion/chosen_shift`` is L_w - R_w: where it rises, the model gets worse at the
images it is to prefer, even at an accuracy of 1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trueline.diffusion.bind import BoundDiffusion
from trueline.diffusion.models.predictions import (
    AnyPredictions,
    LabeledPredictions,
    PairedPredictions,
    Predictions,
)
from trueline.diffusion.objectives import STRENGTH_LIMIT, preference_weight, sdpo_weight
from trueline.training.metrics import Sums


@torch.no_grad()
def diffusion_metrics(batch: AnyPredictions, objective: BoundDiffusion) -> Sums:
    """Sums and counts of a micro-batch's metrics."""
    if isinstance(batch, Predictions):
        return {"diffusion/chosen_error": _sum(batch.error)}
    sides = _sides(batch)
    sums: Sums = {}
    for name, side in sides.items():
        sums[f"diffusion/{name}_error"] = _sum(side.error)
        if side.reference is not None:
            sums[f"diffusion/{name}_shift"] = _sum(side.error - side.reference_error)
            sums[f"rewards/{name}"] = _sum(objective.beta * side.log_ratio)
    if isinstance(batch, PairedPredictions):
        sums |= _pair_metrics(batch, objective)
    return sums


def _sides(batch: PairedPredictions | LabeledPredictions) -> dict[str, Predictions]:
    if isinstance(batch, PairedPredictions):
        return {"chosen": batch.chosen, "rejected": batch.rejected}
    good = batch.desirable
    return {
        "chosen": batch.predictions.map(lambda x: x[good]),
        "rejected": batch.predictions.map(lambda x: x[~good]),
    }


def _pair_metrics(batch: PairedPredictions, objective: BoundDiffusion) -> Sums:
    sums: Sums = {}
    if objective.sdpo_mu is not None:
        sums["diffusion/sdpo_lambda"] = _sum(sdpo_weight(batch, mu=objective.sdpo_mu))
    if batch.chosen.reference is None:
        return sums
    margin = objective.beta * batch.margin
    weight = preference_weight(batch, objective.beta)
    sums["rewards/margins"] = _sum(margin)
    sums["rewards/accuracies"] = _sum(margin > 0)
    sums["diffusion/w"] = _sum(weight)
    if objective.spec.name == "dspo":
        sums["diffusion/w_held"] = _sum(objective.beta * weight > STRENGTH_LIMIT)
    return sums


def _sum(values: Tensor) -> tuple[Any, int]:
    return values.double().sum(), values.numel()
