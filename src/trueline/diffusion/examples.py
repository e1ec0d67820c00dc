"""A made-up pair with round numbers, for the objectives' docstrings."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from trueline.diffusion.models.predictions import PairedPredictions, Predictions


@dataclass(frozen=True)
class ExamplePair(PairedPredictions):
    """One pair whose policy can be set back to the reference."""

    def at_reference(self) -> PairedPredictions:
        """The same pair with the policy's predictions equal to the reference's."""
        return PairedPredictions(*(_at_reference(side) for side in (self.chosen, self.rejected)))


def _at_reference(side: Predictions) -> Predictions:
    assert side.reference is not None
    return Predictions(side.reference.clone(), side.target, side.reference, side.space)


PAIR = ExamplePair(
    Predictions(torch.tensor([[0.5, 0.5]]), torch.zeros(1, 2), torch.tensor([[1.0, 0.5]])),
    Predictions(torch.tensor([[2.0, 1.0]]), torch.zeros(1, 2), torch.tensor([[1.0, 1.0]])),
)
"""L_w = .25, R_w = .625, L_l = 2.5, R_l = 1, so the margin is -(1/2)(-2.25 + .375) = .9375."""
