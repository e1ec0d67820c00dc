"""Prompts as the model reads them, and batches of them.

One renderer (:mod:`trueline.prompts.render`) serves training, diagnostics and generation.
"""

from trueline.prompts.answers import Piece, answer
from trueline.prompts.control import control_tokens
from trueline.prompts.render import Options, Progress, Renderer, Turn, batches_by_length, pad

__all__ = [
    "Options",
    "Piece",
    "Progress",
    "Renderer",
    "Turn",
    "answer",
    "batches_by_length",
    "control_tokens",
    "pad",
]
