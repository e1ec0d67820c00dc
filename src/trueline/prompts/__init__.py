"""Prompts as the model reads them, and batches of them.

One renderer (:mod:`trueline.prompts.render`) serves training, diagnostics and generation.
"""

from trueline.prompts.answers import Piece, answer
from trueline.prompts.batches import Progress, batches_by_length, pad
from trueline.prompts.control import ControlTokens, control_tokens
from trueline.prompts.render import NO_OPTIONS, Options, Rendered, Renderer, Turn, one_bos, opening

__all__ = [
    "NO_OPTIONS",
    "ControlTokens",
    "Options",
    "Piece",
    "Progress",
    "Rendered",
    "Renderer",
    "Turn",
    "answer",
    "batches_by_length",
    "control_tokens",
    "one_bos",
    "opening",
    "pad",
]
