"""Arms that claims share: named once, so that the same alignment is run once."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

from trueline.reproduce.runs import Arm

Data = Literal["compliance_refusal", "preference"]
SHORT: Mapping[str, str] = MappingProxyType({"compliance_refusal": "CR", "preference": "Pref"})
"""Of the data sets, in tables."""

WRITTEN: Mapping[str, str] = MappingProxyType({"simpo": "SimPO", "slic": "SLiC"})
"""Objectives whose names are not all capitals."""


def aligned(objective: str, data: Data = "preference", *, title: str = "", **options: Any) -> Arm:
    """Alignment by an objective, at its own defaults, on one of the sandbox's data sets.

    Args:
        objective: its name.
        data: which data.
        title: of the objective, in tables, where its name alone does not say it.
        options: of the experiment: ``prefix``, or ``training`` for other training options.
    """
    named = title or WRITTEN.get(objective, objective.upper())
    options = {"objective": objective, "data": data, **options}
    return Arm("alignment", options, f"{named} on {SHORT[data]}")


def objective_options(**options: Any) -> dict[str, Any]:
    """Training options that hold options of the objective."""
    return {"objective_options": options}


OBJECTIVES = ("dpo", "kto", "bco", "kldo")
"""KLDO's four, in rising order of the separation they should bring."""

BASE = Arm("world", title="the base model")
ON_CR = {name: aligned(name, "compliance_refusal", watched=True) for name in OBJECTIVES}
ON_PREFERENCE = {name: aligned(name, watched=True) for name in OBJECTIVES}
DPO, DPO_CR = ON_PREFERENCE["dpo"], ON_CR["dpo"]
SIMPO, CPO, DPOP, SLIC, IPO, DIL = (
    aligned(name, pairs_only=True) for name in ("simpo", "cpo", "dpop", "slic", "ipo", "dil")
)
NORMALIZED = aligned(
    "dpo",
    title="DPO normalized",
    pairs_only=True,
    training={"pair_weighting": "normalized"},
)
RATED, RATED_DIL = (
    Arm("selection", {"strategy": "random", "share": 1.0, **more}, f"{title} on all rated pairs")
    for title, more in (("DPO", {}), ("DIL", {"objective": "dil"}))
)
"""Responses of graded quality, labeled by a rater who errs."""
