"""Divergences: closed forms, f-divergences with their duals, and estimators from samples."""

from trueline.divergences.closed import Gaussian, chi2, hellinger2, js, kl, reverse_kl, tv
from trueline.divergences.estimators import (
    donsker_varadhan,
    donsker_varadhan_clipped,
    donsker_varadhan_clipped_loss,
    donsker_varadhan_corrected_loss,
    donsker_varadhan_error,
    donsker_varadhan_loss,
    dual,
    dual_error,
    dual_loss,
    nwj,
    nwj_loss,
)
from trueline.divergences.family import DIVERGENCES, FDivergence

__all__ = [
    "DIVERGENCES",
    "FDivergence",
    "Gaussian",
    "chi2",
    "donsker_varadhan",
    "donsker_varadhan_clipped",
    "donsker_varadhan_clipped_loss",
    "donsker_varadhan_corrected_loss",
    "donsker_varadhan_error",
    "donsker_varadhan_loss",
    "dual",
    "dual_error",
    "dual_loss",
    "hellinger2",
    "js",
    "kl",
    "nwj",
    "nwj_loss",
    "reverse_kl",
    "tv",
]
