"""Align language models to be safe and preferred, and show whether and why it worked."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trueline.config import AlignmentConfig
    from trueline.data import load_examples
    from trueline.logprobs import CompletionLogProbs, PairedLogProbs, UnpairedLogProbs
    from trueline.training import AlignmentTrainer

__version__ = "0.1.0"

_HOMES = {
    "AlignmentConfig": "trueline.config",
    "AlignmentTrainer": "trueline.training",
    "CompletionLogProbs": "trueline.logprobs",
    "PairedLogProbs": "trueline.logprobs",
    "UnpairedLogProbs": "trueline.logprobs",
    "load_examples": "trueline.data",
}

__all__ = [
    "AlignmentConfig",
    "AlignmentTrainer",
    "CompletionLogProbs",
    "PairedLogProbs",
    "UnpairedLogProbs",
    "load_examples",
]


def __getattr__(name: str) -> Any:
    """Import public names when they are first used: `import trueline` itself is instant."""
    if name not in _HOMES:
        raise AttributeError(f"module 'trueline' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
