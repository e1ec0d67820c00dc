"""Training: the step engine, coupling, the reference cache and the trainer around them."""

from trueline.interrupts import Interrupted
from trueline.training.checkpoints import last_checkpoint
from trueline.training.step import NonFiniteError, StepEngine
from trueline.training.trainer import AlignmentTrainer

__all__ = ["AlignmentTrainer", "Interrupted", "NonFiniteError", "StepEngine", "last_checkpoint"]
