"""Tokens: examples become token trees, and trees become one packed batch without padding.

A :class:`TokenTree` is one prompt with its completions as branches. :func:`pack` lays trees end to
end in a single row: each prompt once, its branches behind it, every branch's positions continuing
from the prompt's end. What may attend to what is a :class:`Layout`; :mod:`trueline.scoring`
turns it into attention.
"""

from trueline.batching.arrow import Trees
from trueline.batching.encode import Encoder
from trueline.batching.once import Recipe, encoded
from trueline.batching.pack import Layout, PackedBatch, Segment, causal_mask, onto, pack
from trueline.batching.trees import Branch, Mask, TokenTree, View, view, within_budget

__all__ = [
    "Branch",
    "Encoder",
    "Layout",
    "Mask",
    "PackedBatch",
    "Recipe",
    "Segment",
    "TokenTree",
    "Trees",
    "View",
    "causal_mask",
    "encoded",
    "onto",
    "pack",
    "view",
    "within_budget",
]
