"""Attacks on a model that the user loads: each one function, composable with ``+``."""

import trueline.evaluation.attacks.gcg
import trueline.evaluation.attacks.simple  # noqa: F401
from trueline.evaluation.attacks.base import (
    ATTACKS,
    Attack,
    Attempt,
    Context,
    Step,
    attack,
    open_attack,
)

__all__ = ["ATTACKS", "Attack", "Attempt", "Context", "Step", "attack", "open_attack"]
