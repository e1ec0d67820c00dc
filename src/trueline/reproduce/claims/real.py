"""REAL: dissimilar responses are labeled with fewer errors, train better, and save labels."""

from __future__ import annotations

from collections.abc import Sequence

from trueline.reproduce.claim import Results, claim
from trueline.reproduce.claims.arms import RATED
from trueline.reproduce.runs import Arm
from trueline.reproduce.verdict import Effect

EASY, RANDOM, HARD = (
    Arm("selection", {"strategy": strategy}, f"{title} pairs")
    for strategy, title in (("easy", "dissimilar"), ("random", "random"), ("hard", "similar"))
)
FEW = Arm("selection", {"strategy": "easy", "share": 0.35}, "the 35% most dissimilar pairs")
REWARDED = "held-out pairs rewarded right"
SHOWS = {
    "pairs": "",
    "label errors": "rate",
    REWARDED: "rate",
    "right on both": "rate",
    "attack success, direct": "rate",
    "correct answers": "rate",
}
RATER = (
    "The rater's errors follow the gap in quality, which in the sandbox is only partly visible in "
    "embeddings: a refusal and a recipe differ most, whatever the recipe's worth."
)


@claim(
    "dissimilar-pairs-fewer-errors",
    paper="REAL",
    statement="Pairs of dissimilar responses carry fewer label errors than random pairs.",
    measured="Share of wrong labels among the selected half, by the base model's embeddings, "
    "against a random half and the most similar half.",
    arms=(EASY, RANDOM, HARD),
    shows=SHOWS,
    caveat=RATER,
)
def fewer_errors(results: Results) -> Sequence[Effect]:
    return [
        results.difference(EASY, other, "label errors", "below", unit="rate")
        for other in (RANDOM, HARD)
    ]


@claim(
    "dissimilar-pairs-train-better",
    paper="REAL",
    statement="At an equal budget, training on dissimilar pairs gives a better model than on "
    "random pairs.",
    measured="Share of pairs of responses about held-out things, truly labeled, whose better "
    "response's log-prob rose more, after DPO on equally many pairs.",
    arms=(EASY, RANDOM),
    shows=SHOWS,
    caveat=RATER + " Dissimilar pairs are mostly a refusal against a recipe, and teach little "
    "about which recipe is right.",
)
def train_better(results: Results) -> Sequence[Effect]:
    return [results.difference(EASY, RANDOM, REWARDED, "above", unit="rate")]


@claim(
    "labels-saved",
    paper="REAL",
    statement="A model trained on the 35% most dissimilar pairs is as good as one trained on all.",
    measured="The same share as above, 35% of the labels minus all of them: above -5 points.",
    arms=(FEW, RATED),
    shows=SHOWS,
    caveat=RATER + " Both are trained for five epochs, so fewer labels are fewer steps, too.",
)
def saved(results: Results) -> Sequence[Effect]:
    return [results.difference(FEW, RATED, REWARDED, "above", against=-0.05, unit="rate")]
