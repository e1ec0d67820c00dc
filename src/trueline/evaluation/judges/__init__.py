"""Judges: refusal phrases, classifiers, language models; what each can tell, and how well."""

import trueline.evaluation.judges.classifiers
import trueline.evaluation.judges.ensemble
import trueline.evaluation.judges.language
import trueline.evaluation.judges.learned
import trueline.evaluation.judges.phrases
import trueline.evaluation.judges.published  # noqa: F401
from trueline.evaluation.judges.base import JUDGES, Judge, Measure, Verdict, checked, judge
from trueline.evaluation.judges.language import harm_scores

__all__ = ["JUDGES", "Judge", "Measure", "Verdict", "checked", "harm_scores", "judge"]
