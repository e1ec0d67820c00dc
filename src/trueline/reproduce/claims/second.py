"""Version 2: in a wider world, at a second size of base, at matched KL, and another defense."""

from __future__ import annotations

from collections.abc import Sequence

from trueline.reproduce.arms import DPO_CR, OBJECTIVES, aligned
from trueline.reproduce.claim import OWN, STAGES, Results, claim
from trueline.reproduce.claims.kldo import SOUND, WRAPPED
from trueline.reproduce.claims.own import BEGUN
from trueline.reproduce.runs import Arm
from trueline.reproduce.verdict import Effect, Expected

CR = "compliance_refusal"


def _in(size: str, objective: str, **more: object) -> Arm:
    title = f"{objective.upper()} in the {size} world"
    return aligned(objective, CR, title=title, size=size, watched=True, **more)


WIDE = {name: _in("wide", name) for name in OBJECTIVES}
SMALL = {name: _in("small", name) for name in OBJECTIVES}
WIDE_BASE = Arm("world", {"size": "wide"}, "the wide world's base model")
ANYWHERE = aligned("dpo", CR, title="DPO with answers begun anywhere", defense="anywhere")
UNSEEN = ("prefilled in an unseen form", "prefilled behind a remark")

SHOWS = {
    "separation": "",
    "separation, noise": "",
    **{f"attack success, {name}": "rate"
       for name in ("direct", "wrapped", "spelled", "many-shot", "prefilled")},
    WRAPPED: "nats",
    "kl": "nats a token",
    "over-refusal": "rate",
    "correct answers": "rate",
}  # fmt: skip
OF_THE_WORLD = (
    "320 things of four kinds of harm, 100 held out of each sort, among them all of the fourth "
    "kind; names spelled out and talks of several turns are known to the base."
)
