"""What a model is still good for: MT-Bench, win rates, perplexity, babble, the KL
from a reference, and the standard tasks of lm-eval."""

from trueline.evaluation.utility import babble, lm_eval, mt_bench, proxies, win_rate
from trueline.evaluation.utility.base import UTILITIES, UtilityContext, utility

__all__ = [
    "UTILITIES",
    "UtilityContext",
    "babble",
    "lm_eval",
    "mt_bench",
    "proxies",
    "utility",
    "win_rate",
]
