"""Why it worked: what alignment did to the model's inside.

Here ``separation``, ``entanglement`` and ``ranking`` are the functions; their modules are
``trueline.diagnostics.separation`` and so on.
"""

from trueline.diagnostics.entanglement import entanglement
from trueline.diagnostics.ranking import difficulty, difficulty_of, ranking, ranking_of
from trueline.diagnostics.separation import (
    separation,
    separation_change,
    separation_of,
    separation_profile,
)
from trueline.diagnostics.separation.callback import SeparationCallback
from trueline.diagnostics.separation.fit import bhattacharyya_distance, fisher_ratio
from trueline.diagnostics.separation.hidden import hidden_states
from trueline.diagnostics.verdict import verdict, verdict_finding

__all__ = [
    "SeparationCallback",
    "bhattacharyya_distance",
    "difficulty",
    "difficulty_of",
    "entanglement",
    "fisher_ratio",
    "hidden_states",
    "ranking",
    "ranking_of",
    "separation",
    "separation_change",
    "separation_of",
    "separation_profile",
    "verdict",
    "verdict_finding",
]
