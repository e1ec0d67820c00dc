"""Separation during training, as ``sep/*`` among the training's metrics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import TrainerCallback

from trueline.diagnostics.separation.fit import Protocol, labels_of
from trueline.diagnostics.separation.hidden import Position, hidden_states
from trueline.diagnostics.separation.measure import Placement, metrics
from trueline.errors import UserError
from trueline.records import Text


class SeparationCallback(TrainerCallback):
    """Measures the separation of the same labeled prompts every so many steps and logs it.

    One forward pass over the prompts each time, without intervals, dropout off. Plane and probe are
    fitted anew each time, on the same half of the prompts.

    Args:
        trainer: that trains, an :class:`~trueline.AlignmentTrainer`; it logs and writes the file.
        prompts: a few dozen of each class are enough.
        harmful: one label a prompt.
        steps: between two measurements.
        layer, position, batch_size: as in :func:`~trueline.diagnostics.separation.separation`.

    Raises:
        UserError: labels that do not fit, too few prompts of a class, or ``steps`` below 1.

    Example:
        >>> trainer.add_callback(                                       # doctest: +SKIP
        ...     SeparationCallback(trainer, prompts, harmful, steps=50))
    """

    def __init__(
        self,
        trainer: Any,
        prompts: Sequence[Text],
        harmful: Sequence[bool],
        *,
        steps: int,
        layer: int = -1,
        position: Position = "last_prompt_token",
        batch_size: int = 32,
    ) -> None:
        if steps < 1:
            raise UserError(f"steps must be at least 1, got {steps}")
        self.trainer = trainer
        self.prompts = list(prompts)
        self.labels = labels_of(harmful, len(self.prompts))
        self.protocol = Protocol(n_bootstrap=0)
        self.protocol.split(self.labels)  # refuses too few before training starts
        self.steps = steps
        self.reading: dict[str, Any] = {
            "layer": layer, "position": position, "batch_size": batch_size
        }  # fmt: skip

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure and log, where it is time to."""
        if state.global_step % self.steps == 0:
            self.trainer.log(self.measure())

    def measure(self) -> dict[str, float]:
        """The metrics of the present weights."""
        states = hidden_states(
            self.trainer.model, self.trainer.processing_class, self.prompts, **self.reading
        )
        found = metrics(Placement.of(states.numpy(), self.labels, self.protocol))
        return {f"sep/{m.name}": m.value for m in found if m.value is not None}
