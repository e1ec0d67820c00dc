"""Runs against a baseline, paired by prompt; and what they say about resilience."""

from trueline.evaluation.comparison.compare import compare_runs
from trueline.evaluation.comparison.points import points_from_runs, read_points
from trueline.evaluation.comparison.runs import JudgedRun, load_judged_run, load_judged_runs
from trueline.evaluation.comparison.values import (
    Comparison,
    Contrast,
    JudgeCalibration,
    Scope,
    Settings,
)
from trueline.evaluation.comparison.words import findings_of, judges_sentence, samples_of, sentence

__all__ = [
    "Comparison",
    "Contrast",
    "JudgeCalibration",
    "JudgedRun",
    "Scope",
    "Settings",
    "compare_runs",
    "findings_of",
    "judges_sentence",
    "load_judged_run",
    "load_judged_runs",
    "points_from_runs",
    "read_points",
    "samples_of",
    "sentence",
]
