"""Gradient entanglement: why the chosen falls, what protects it, and a remedy."""

from __future__ import annotations

from collections.abc import Sequence

from trueline.reproduce.claim import Results, claim
from trueline.reproduce.claims.arms import CPO, DPO, DPOP, NORMALIZED, SLIC
from trueline.reproduce.runs import Arm
from trueline.reproduce.verdict import Effect

SHORT, MIDDLE, LONG = (
    Arm("suffix", {"contrast": contrast}, f"DPO, {title} shared suffix")
    for contrast, title in ((2, "short"), (1, "middling"), (0, "long"))
)
BALANCED = Arm(
    "suffix",
    {"contrast": 0, "training": {"pair_weighting": "normalized"}},
    "DPO normalized, long shared suffix",
)
TOY_SHORT, TOY_LONG = (
    Arm("toy", {"suffix": suffix}, f"DPO, {suffix} shared tokens") for suffix in (0, 15)
)
TOY_BALANCED = Arm("toy", {"suffix": 15, "normalize": True}, "DPO normalized, 15 shared tokens")
TOY_FAINT = Arm(
    "toy", {"suffix": 15, "faint": 0.5, "warm_up": 0}, "DPO, 15 shared tokens, a faint rejected"
)
CONDITION = Arm("condition", title="pairs of every kind")
SHOWS = {"chosen change": "nats", "rejected change": "nats"}


@claim(
    "suffix-in-theory",
    paper="Entanglement",
    statement="Where the theory holds, DPO lets both log-probs fall once the shared suffix is "
    "long, and balanced pushes keep the chosen from falling.",
    measured="One pair, frozen features, a softmax head, plain gradient descent after a warm-up on "
    "the chosen: cosine of the gradients, and changes of the log-probs.",
    arms=(TOY_SHORT, TOY_LONG, TOY_BALANCED),
    shows={"cosine": "", **SHOWS},
    caveat="The theory's own setting, far from a trained transformer; pairs differ by seed.",
)
def in_theory(results: Results) -> Sequence[Effect]:
    return [
        results.difference(TOY_LONG, TOY_SHORT, "cosine", "above"),
        results.difference(TOY_LONG, TOY_SHORT, "chosen change", "below", unit="nats"),
        results.mean(TOY_LONG, "chosen change", "below", unit="nats"),
        results.mean(TOY_LONG, "rejected change", "below", unit="nats"),
        results.mean(TOY_BALANCED, "chosen change", "above", unit="nats"),
    ]


@claim(
    "both-can-rise",
    paper="Entanglement",
    statement="As the margin grows, the rejected answer's log-prob can rise with the chosen's.",
    measured="Where the theory holds: one pair with 15 shared tokens, new to the model, whose "
    "rejected side has features half as long, so that the gradients' inner product is above its "
    "squared norm; changes under DPO.",
    arms=(TOY_FAINT,),
    shows={"cosine": "", **SHOWS, "margin": "nats"},
    caveat="A pair made for it: it shows that it can be, not how often it is.",
)
def both_rise(results: Results) -> Sequence[Effect]:
    return [
        results.mean(TOY_FAINT, name, "above", unit="nats")
        for name in ("rejected change", "chosen change", "margin")
    ]


@claim(
    "inner-product-foretells",
    paper="Entanglement",
    statement="Whether chosen and rejected rise or fall is told by their gradients' inner product "
    "beside their norms.",
    measured="One tiny DPO step on thirty pairs a seed (suffixes of 0 to 15 tokens, features of "
    "the rejected as long as the chosen's or shorter, with and without a warm-up): the share of "
    "sides that moved as the condition says, and how many of its three cases were met.",
    arms=(CONDITION,),
    shows={"foretold right": "rate", "cases met": ""},
    caveat="First order, one pair, plain gradient descent: there it is a theorem. In a trained "
    "transformer under AdamW the diagnostic shows how far it carries; no claim measures that.",
)
def foretells(results: Results) -> Sequence[Effect]:
    return [
        results.extreme(CONDITION, [name], "equal", name=f"{name}, worst seed", against=against)
        for name, against in (("foretold right", 1.0), ("cases met", 3.0))
    ]


@claim(
    "suffix-drags-both-down",
    paper="Entanglement",
    statement="In a trained transformer, too, both log-probs fall under DPO as the suffix that "
    "chosen and rejected share grows.",
    measured="Pairs of invented recipes that differ in one word, after 60 steps of fine-tuning on "
    "the chosen: change of their log-probs under DPO, and the cosine of their gradients before.",
    arms=(SHORT, MIDDLE, LONG),
    shows={"shared words": "", "cosine": "", **SHOWS, "margin": "nats"},
    caveat="The theory is of one pair, first order and plain gradient descent; training here is "
    "AdamW on many pairs.",
)
def suffix(results: Results) -> Sequence[Effect]:
    return [
        results.difference(LONG, SHORT, "cosine", "above"),
        results.difference(LONG, SHORT, "chosen change", "below", unit="nats"),
        results.mean(LONG, "chosen change", "below", unit="nats"),
        results.mean(LONG, "rejected change", "below", unit="nats"),
    ]


@claim(
    "objectives-that-protect",
    paper="Entanglement",
    statement="Objectives that pull the chosen harder than they push the rejected (CPO, DPOP, "
    "SLiC) keep the chosen's log-prob higher than DPO does.",
    measured="Mean change of the chosen's log-prob over training pairs, against DPO's.",
    arms=(DPO, CPO, DPOP, SLIC),
    shows=SHOWS,
    caveat="The sandbox's base knows its recipes by heart: many chosen answers have no room to "
    "rise.",
    on_recipe=True,
)
def protect(results: Results) -> Sequence[Effect]:
    return [
        results.difference(arm, DPO, "chosen change", "above", unit="nats")
        for arm in (CPO, DPOP, SLIC)
    ]


@claim(
    "normalized-remedy",
    paper="Entanglement",
    statement="Balancing a pair's two pushes by their gradients' norms keeps the chosen's log-prob "
    "from falling.",
    measured="Change of the chosen's log-prob, normalized minus plain DPO, on pairs with a long "
    "shared suffix and on the preference data.",
    arms=(BALANCED, LONG, NORMALIZED, DPO),
    shows=SHOWS,
    caveat="The remedy is Trueline's reading of the paper (its exact formula was not available), "
    "and its guarantee is for one pair and plain gradient descent.",
)
def remedy(results: Results) -> Sequence[Effect]:
    return [
        results.difference(BALANCED, LONG, "chosen change", "above", unit="nats"),
        results.difference(NORMALIZED, DPO, "chosen change", "above", unit="nats"),
    ]
