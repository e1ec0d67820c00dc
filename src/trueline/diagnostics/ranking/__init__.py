"""How well a model ranks chosen above rejected, how well it could, and how hard it is."""

from trueline.diagnostics.ranking.finding import (
    Difficulties,
    Scores,
    difficulties_of,
    difficulty,
    difficulty_of,
    ranking,
    ranking_of,
    ranking_of_scores,
    score_completions,
)

__all__ = [
    "Difficulties",
    "Scores",
    "difficulties_of",
    "difficulty",
    "difficulty_of",
    "ranking",
    "ranking_of",
    "ranking_of_scores",
    "score_completions",
]
