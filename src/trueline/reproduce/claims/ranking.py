"""Ranking: preference learning ranks worse than it could, and hard pairs stay wrong."""

from __future__ import annotations

from collections.abc import Sequence

from trueline.reproduce.arms import DPO, DPO_CR, aligned, objective_options
from trueline.reproduce.claim import Results, claim
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
    "Training runs to the schedule's end, where the loss on held-out pairs was lowest in two seeds "
    "looked at. The sandbox's pairs are of two kinds only, very hard (refusals) and easy (right "
    "recipes), which one direction tells apart: on preference data DPO can put every pair right, "
    "as no large model on human labels does."
)


@claim(
    "observed-under-idealized",
    paper="Ranking",
    statement="The ranking accuracy that DPO reaches is under the one its optimum would have.",
    measured="Share of training pairs whose chosen answer is the likelier one, against the share "
    "at DPO's optimum for unanimous raters.",
    arms=(DPO, DPO_CR),
    shows=SHOWS,
    caveat=KINDS,
)
def gap(results: Results) -> Sequence[Effect]:
    return [
        results.within(arm, "ranking accuracy", "idealized", "below", unit="rate")
        for arm in (DPO, DPO_CR)
    ]


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
