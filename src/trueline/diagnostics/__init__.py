"""Why it worked: what alignment did to the model's inside.

Here ``separation`` is the function; its module is ``trueline.diagnostics.separation``.
"""

from trueline.diagnostics.distances import bhattacharyya_distance, fisher_ratio
from trueline.diagnostics.hidden import hidden_states
from trueline.diagnostics.separation import separation, separation_of

__all__ = [
    "bhattacharyya_distance",
    "fisher_ratio",
    "hidden_states",
    "separation",
    "separation_of",
]
