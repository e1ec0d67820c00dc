"""Log-probabilities of completions, exact and without waste.

The fast path runs a packed row through the model: each prompt once, no padding, attention segment
by segment, and the LM head only where a scored token is predicted, in chunks whose logits are
never stored. The plain path is one padded row a completion. They agree to rounding;
:func:`verify` checks that on the model at hand, and :class:`Scorer` falls back to the
plain path, saying so, where they do not.
"""

from trueline.scoring.head import head_log_probs
from trueline.scoring.scorer import Scorer, Shortcuts, evaluating, plain_log_probs, scoring
from trueline.scoring.trees import TOKEN_BUDGET, score_trees

__all__ = [
    "TOKEN_BUDGET",
    "Scorer",
    "Shortcuts",
    "evaluating",
    "head_log_probs",
    "plain_log_probs",
    "score_trees",
    "scoring",
]
