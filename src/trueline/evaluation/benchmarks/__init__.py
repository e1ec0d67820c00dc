"""Benchmarks: loaders that check what they read. None is bundled."""

import trueline.evaluation.benchmarks.sets
import trueline.evaluation.benchmarks.tables  # noqa: F401
from trueline.evaluation.benchmarks.base import BENCHMARKS, Benchmark, Item, benchmark, limited

__all__ = ["BENCHMARKS", "Benchmark", "Item", "benchmark", "limited"]
