"""Ranking: preference learning ranks worse than it could, and hard pairs stay wrong."""

from __future__ import annotations

from collections.abc import Sequence

from trueline.reproduce.claim import Results, claim
from trueline.reproduce.claims.arms import DPO_CR, RATED, aligned, objective_options
from trueline.reproduce.verdict import Effect

GAMMA = aligned(
    "gamma_dpo",
    "compliance_refusal",
    title="gamma-DPO at 0",
    training=objective_options(gamma=0.0),
)
SHOWS = {
    "reference ranking accuracy": "rate",
    "ranking accuracy": "rate",
    "idealized": "rate",
    "flipped": "rate",
}
KINDS = (
    "Training runs to the schedule's end. Compliance-refusal pairs are of two kinds only, very "
    "hard (refusals) and easy (right recipes); the rated pairs have responses of five grades and "
    "a rater who errs, but a model of four layers can learn its labels by heart, as no large "
    "model does with human labels."
)


@claim(
    "observed-under-idealized",
    paper="Ranking",
    statement="The ranking accuracy that DPO reaches is under the one its optimum would have.",
    measured="Share of training pairs whose chosen answer is the likelier one, against the share "
    "at DPO's optimum for unanimous raters: on rated pairs and on compliance-refusal data.",
    arms=(RATED, DPO_CR),
    shows=SHOWS,
    caveat=KINDS,
)
def gap(results: Results) -> Sequence[Effect]:
    return [
        results.within(arm, "ranking accuracy", "idealized", "below", unit="rate")
        for arm in (RATED, DPO_CR)
    ]


@claim(
    "mild-errors-stay",
    paper="Ranking",
    statement="Of its reference's mild ranking errors DPO puts less than half right.",
    measured="Share put right of the rated training pairs that the reference ranks wrong by at "
    "most 5 nats.",
    arms=(RATED,),
    shows={**SHOWS, "mild errors put right": "rate"},
    caveat=KINDS,
)
def mild(results: Results) -> Sequence[Effect]:
    return [results.mean(RATED, "mild errors put right", "below", against=0.5, unit="rate")]


@claim(
    "easy-pairs-flip",
    paper="Ranking",
    statement="Of the pairs that the reference ranks wrong, DPO puts the easier ones right.",
    measured="Mean difficulty of the pairs put right minus that of those still wrong, nats, "
    "after alignment on compliance-refusal data.",
    arms=(DPO_CR,),
    shows={**SHOWS, "difficulty, flipped minus not": "nats"},
    caveat=KINDS,
    on_recipe=True,
)
def flips(results: Results) -> Sequence[Effect]:
    return [results.mean(DPO_CR, "difficulty, flipped minus not", "below", unit="nats")]


@claim(
    "gamma-trades",
    paper="Ranking",
    statement="Without the reference's say (gamma-DPO at gamma 0) more pairs are ranked right than "
    "by DPO, at the price of a policy further from the reference.",
    measured="Ranking accuracy on training pairs, and the mean absolute log-ratio to the reference "
    "for each token, after alignment on compliance-refusal data.",
    arms=(GAMMA, DPO_CR),
    shows={"ranking accuracy": "rate", "distance": "nats", "correct answers": "rate"},
    caveat=KINDS,
    on_recipe=True,
)
def gamma(results: Results) -> Sequence[Effect]:
    return [
        results.difference(GAMMA, DPO_CR, "ranking accuracy", "above", unit="rate"),
        results.difference(GAMMA, DPO_CR, "distance", "above", unit="nats"),
    ]
