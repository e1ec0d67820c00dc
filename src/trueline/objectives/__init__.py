"""Alignment objectives: pure functions of log-probs, each declared once in ``OBJECTIVES``."""

from trueline.objectives.base import OBJECTIVES, BoundObjective, Objective, bind, coefficients
from trueline.objectives.paired import dpo, ipo
from trueline.objectives.reference_free import sft, simpo
from trueline.objectives.unpaired import bco, kldo, kto

__all__ = [
    "OBJECTIVES",
    "BoundObjective",
    "Objective",
    "bco",
    "bind",
    "coefficients",
    "dpo",
    "ipo",
    "kldo",
    "kto",
    "sft",
    "simpo",
]
