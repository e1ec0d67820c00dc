"""Which two responses to a prompt make the pair: REAL's choices, many prompts at a time.

Everything follows from the Gram matrix of unit vectors, the cosines G_ij = u_i . u_j in float32. A
strategy is one decorated function from a batch of Gram matrices to one pair of indices each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from trueline.registry import Registry

Floats: TypeAlias = np.ndarray[Any, np.dtype[np.float32]]
Ints: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]
Bools: TypeAlias = np.ndarray[Any, np.dtype[np.bool_]]
Strategy: TypeAlias = Callable[[Floats, Bools, Ints], Ints]

ENUMERATED = 10  # up to this many responses every split into two clusters is tried

STRATEGIES: Registry[Strategy] = Registry("selection strategy")
"""How to choose a pair: name to function of (cosines, eligible pairs, random numbers)."""


def strategy(name: str) -> Callable[[Strategy], Strategy]:
    """Register a strategy."""

    def add(function: Strategy) -> Strategy:
        return STRATEGIES.add(name, function)

    return add


def cosines(vectors: Any) -> Floats:
    """(..., n, n) cosines of (..., n, d) vectors, in float32 whatever their type.

    Example:
        >>> cosines([[2.0, 0.0], [0.0, 0.5]]).tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    array = np.asarray(vectors, dtype=np.float32)
    # Scaling by the largest entry first keeps the squares of huge and tiny vectors in range.
    scaled = array / np.abs(array).max(axis=-1, keepdims=True)
    unit = scaled / np.linalg.norm(scaled, axis=-1, keepdims=True)
    return np.clip(unit @ np.swapaxes(unit, -1, -2), -1, 1)


def _pairs(n: int) -> Ints:
    """(n(n-1)/2, 2) index pairs i < j, in the order (0,1), (0,2), ..., (1,2), ..."""
    return np.stack(np.triu_indices(n, 1), axis=1)


def _best(values: Floats, eligible: Bools) -> Ints:
    """(B, 2) the pair with the largest value among the eligible ones; of equals the first."""
    pairs = _pairs(values.shape[-1])
    first, second = pairs.T
    masked = np.where(eligible[:, first, second], values[:, first, second], -np.inf)
    return pairs[masked.argmax(axis=1)]


@strategy("easy")
def easy(gram: Floats, eligible: Bools, draws: Ints) -> Ints:
    """The least similar pair: REAL's choice, the least ambiguous to label."""
    return _best(-gram, eligible)


@strategy("hard")
def hard(gram: Floats, eligible: Bools, draws: Ints) -> Ints:
    """The most similar pair."""
    return _best(gram, eligible)


@strategy("random")
def random(gram: Floats, eligible: Bools, draws: Ints) -> Ints:
    """Any pair, each as likely as any other; ``draws`` are the random numbers, one a prompt."""
    pairs = _pairs(gram.shape[-1])
    allowed = eligible[:, pairs[:, 0], pairs[:, 1]]
    number = draws % np.maximum(allowed.sum(axis=1), 1)
    return pairs[(allowed.cumsum(axis=1) > number[:, None]).argmax(axis=1)]


@strategy("centroid")
def centroid(gram: Floats, eligible: Bools, draws: Ints) -> Ints:
    """2-means, then the response nearest each centroid.

    Up to ten responses every split is tried, so the clusters are the best there are; beyond that
    k-means++ runs from ten starts, seeded by ``draws``. Eligibility is ignored: the centroids say
    which pair it is.
    """
    found = [two_means(one, int(draw)) for one, draw in zip(gram, draws, strict=True)]
    return np.array([sorted(means.nearest) for means in found])


class TwoMeans(NamedTuple):
    """Two clusters: the member nearest each center, and the sum of squared distances."""

    nearest: tuple[int, int]
    inertia: float


def two_means(gram: Floats, seed: int = 0) -> TwoMeans:
    """2-means from cosines alone: |u_i - c|^2 = 1 - 2 (G s)_i / m + s'Gs / m^2, where s marks the
    m members of the cluster with center c."""
    n = len(gram)
    marks = _splits(n) if n <= ENUMERATED else _kmeans(gram, seed)
    products = marks @ gram.astype(np.float64)  # (P, n)
    others = gram.sum(axis=0, dtype=np.float64) - products
    sizes = marks.sum(axis=1)
    within = (products * marks).sum(axis=1) / sizes
    within += (others * (1 - marks)).sum(axis=1) / (n - sizes)
    best = int(within.argmax())
    member = marks[best].astype(bool)
    # Within one cluster, the nearest to its center is the one with the largest product.
    first = np.where(member, products[best], -np.inf).argmax()
    second = np.where(member, -np.inf, others[best]).argmax()
    return TwoMeans((int(first), int(second)), float(np.trace(gram) - within[best]))


def _splits(n: int) -> Floats:
    """(2^(n-1) - 1, n) every split in two, as the indicator of the part that holds response 0."""
    numbers = np.arange(2 ** (n - 1) - 1)[:, None]
    rest = (numbers >> np.arange(n - 1)) & 1
    return np.hstack([np.ones((len(rest), 1)), rest]).astype(np.float32)


def _kmeans(gram: Floats, seed: int) -> Floats:
    """One split of many responses, found by k-means on coordinates with these cosines."""
    from sklearn.cluster import KMeans

    values, axes = np.linalg.eigh(gram.astype(np.float64))
    points = axes * np.sqrt(np.clip(values, 0, None))
    labels = KMeans(2, n_init=10, random_state=seed % 2**32).fit_predict(points)
    marks: Floats = (labels == labels[0]).astype(np.float32)[None]
    return marks
