"""Measuring what alignment does, in the sandbox, where the truth is known."""

from trueline.reproduce.laboratory import Measurement, Recipe, align, measure

__all__ = ["Measurement", "Recipe", "align", "measure"]
