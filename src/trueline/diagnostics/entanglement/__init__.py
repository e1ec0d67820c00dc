"""Whether a step on preference pairs drags chosen and rejected along together."""

from trueline.diagnostics.entanglement.finding import entanglement

__all__ = ["entanglement"]
