"""Training: the step engine, coupling, the reference cache and the trainer around them."""

from trueline.training.step import NonFiniteError, StepEngine
from trueline.training.trainer import AlignmentTrainer, last_checkpoint

__all__ = ["AlignmentTrainer", "NonFiniteError", "StepEngine", "last_checkpoint"]
