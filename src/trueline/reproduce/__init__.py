"""Measuring what alignment does, in the sandbox, where the truth is known."""

import sys

from trueline.reproduce.laboratory import Measurement, Recipe, align, measure
from trueline.verbs import Called

__all__ = ["Measurement", "Recipe", "align", "measure"]

sys.modules[__name__].__class__ = Called
