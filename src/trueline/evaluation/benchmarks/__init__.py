"""Benchmarks: loaders that check what they read. None is bundled."""

from trueline.evaluation.benchmarks import attack_sets, refusal_sets, tables
from trueline.evaluation.benchmarks.base import BENCHMARKS, Benchmark, Item, benchmark, limited

__all__ = [
    "BENCHMARKS",
    "Benchmark",
    "Item",
    "attack_sets",
    "benchmark",
    "limited",
    "refusal_sets",
    "tables",
]
