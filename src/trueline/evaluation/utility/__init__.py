"""What a model is still good for: MT-Bench, win rates, perplexity, babble, the KL
from a reference, and the standard tasks of lm-eval."""

import trueline.evaluation.utility.lm_eval
import trueline.evaluation.utility.mt_bench
import trueline.evaluation.utility.proxies
import trueline.evaluation.utility.win_rate  # noqa: F401
from trueline.evaluation.utility.base import UTILITIES, UtilityContext, utility

__all__ = ["UTILITIES", "UtilityContext", "utility"]
