"""All registered questions: importing this registers the house's own."""

import trueline.diagnostics.entanglement.question
import trueline.diagnostics.ranking.question
import trueline.diagnostics.separation.question  # noqa: F401
from trueline.diagnostics.question import QUESTIONS

__all__ = ["QUESTIONS"]
