"""How far apart a model holds harmful and safe prompts."""

from trueline.diagnostics.separation.finding import (
    separation,
    separation_change,
    separation_change_of,
    separation_of,
    separation_profile,
)
from trueline.diagnostics.separation.hidden import hidden_states

__all__ = [
    "hidden_states",
    "separation",
    "separation_change",
    "separation_change_of",
    "separation_of",
    "separation_profile",
]
