"""How well a model ranks chosen above rejected, how well it could, and how hard it is."""

from trueline.diagnostics.ranking.finding import (
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
    "Scores",
    "difficulties_of",
    "difficulty",
    "difficulty_of",
    "ranking",
    "ranking_of",
    "ranking_of_scores",
    "score_completions",
]
