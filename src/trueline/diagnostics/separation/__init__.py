"""How far apart a model holds harmful and safe prompts."""

from trueline.diagnostics.separation.callback import SeparationCallback
from trueline.diagnostics.separation.finding import (
    separation,
    separation_change,
    separation_change_of,
    separation_of,
    separation_profile,
    short_texts,
)
from trueline.diagnostics.separation.fit import bhattacharyya_distance, fisher_ratio
from trueline.diagnostics.separation.hidden import hidden_states

__all__ = [
    "SeparationCallback",
    "bhattacharyya_distance",
    "fisher_ratio",
    "hidden_states",
    "separation",
    "separation_change",
    "separation_change_of",
    "separation_of",
    "separation_profile",
    "short_texts",
]
