"""Alignment objectives: pure functions of log-probs, each declared once in ``OBJECTIVES``."""

from trueline.objectives.base import (
    OBJECTIVES,
    BoundObjective,
    Objective,
    Statistic,
    coefficients,
    objective,
)
from trueline.objectives.bind import bind, find
from trueline.objectives.combined import Combined
from trueline.objectives.density_ratio import dil, dil_bce, dil_cpc, dil_ukl
from trueline.objectives.duals import chi2, fdo, hdo, reverse_kl
from trueline.objectives.guards import weight_warning
from trueline.objectives.kl import kldo, kldo_ema, kldo_nwj
from trueline.objectives.margins import apo_down, apo_zero, exo, hinge, ipo, nca, sppo
from trueline.objectives.paired import discopop, dpo, dpop, e_dpo, gamma_dpo, r_dpo, robust_dpo
from trueline.objectives.reference_free import cpo, orpo, rrhf, sft, simpo, slic
from trueline.objectives.transport import aot, aot_unpaired
from trueline.objectives.unpaired import apo_zero_unpaired, bco, kto

__all__ = [
    "OBJECTIVES",
    "BoundObjective",
    "Combined",
    "Objective",
    "Statistic",
    "aot",
    "aot_unpaired",
    "apo_down",
    "apo_zero",
    "apo_zero_unpaired",
    "bco",
    "bind",
    "chi2",
    "coefficients",
    "cpo",
    "dil",
    "dil_bce",
    "dil_cpc",
    "dil_ukl",
    "discopop",
    "dpo",
    "dpop",
    "e_dpo",
    "exo",
    "fdo",
    "find",
    "gamma_dpo",
    "hdo",
    "hinge",
    "ipo",
    "kldo",
    "kldo_ema",
    "kldo_nwj",
    "kto",
    "nca",
    "objective",
    "orpo",
    "r_dpo",
    "reverse_kl",
    "robust_dpo",
    "rrhf",
    "sft",
    "simpo",
    "slic",
    "sppo",
    "weight_warning",
]
