"""Judges: refusal phrases, classifiers, language models; what each can tell, and how well."""

from trueline.evaluation.judges import (
    classifiers,
    ensemble,
    guards,
    kldo,
    language,
    learned,
    phrases,
    published,
)
from trueline.evaluation.judges.base import JUDGES, Judge, Measure, Verdict, checked, judge
from trueline.evaluation.judges.language import harm_scores

__all__ = [
    "JUDGES",
    "Judge",
    "Measure",
    "Verdict",
    "checked",
    "classifiers",
    "ensemble",
    "guards",
    "harm_scores",
    "judge",
    "kldo",
    "language",
    "learned",
    "phrases",
    "published",
]
