"""What scored completions tell beyond pairs: rater shares, whole rankings, ties."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from trueline.diagnostics.ranking.scores import PairIndex, Scores
from trueline.diagnostics.ranking.theory import Array, exact_ranking, ties_right
from trueline.errors import UserError
from trueline.records import Example
from trueline.results import Metric
from trueline.stats import clustered_rate, rate


def rater_shares(examples: Sequence[Example], index: PairIndex) -> Array:
    """(P,) shares of raters who prefer each pair's chosen completion, from votes in the scores.

        alpha = score(chosen) / (score(chosen) + score(rejected))

    Raises:
        UserError: a completion of a pair has no score, or the scores cannot be votes.
    """
    shares = np.empty(len(index))
    for row, (i, w, loser) in enumerate(
        zip(index.example, index.chosen, index.rejected, strict=True)
    ):
        completions = examples[i].completions
        scores = (completions[w].score, completions[loser].score)
        if scores[0] is None or scores[1] is None:
            raise UserError(
                f"{examples[i].id or f'example {i}'}: no score on a completion of a pair; rater "
                "shares from scores need one on each (or give the share itself)"
            )
        if min(scores[0], scores[1]) < 0 or scores[0] + scores[1] <= 0:
            raise UserError(
                f"{examples[i].id or f'example {i}'}: scores {scores[0]:g} and {scores[1]:g} are "
                "no votes; rater shares need counts or shares of at least 0"
            )
        shares[row] = scores[0] / (scores[0] + scores[1])
    return shares


def rankings(examples: Sequence[Example], policy: Scores) -> Iterator[Metric]:
    """How often the order of all of three or more completions is that of their scores."""
    hits: list[bool] = []
    chances: list[float] = []
    for example, log_probs in zip(examples, policy.log_probs, strict=True):
        scores = [c.score for c in example.completions if c.score is not None]
        if len(scores) >= 3 and len(set(scores)) == len(scores) == len(example.completions):
            hits.append(exact_ranking(scores, log_probs.tolist()))
            chances.append(1 / math.factorial(len(scores)))
    if hits:
        yield rate("gap/exact_ranking", hits)
        yield Metric("gap/exact_ranking_chance", float(np.mean(chances)), n=len(hits), unit="rate")


def ties(examples: Sequence[Example], policy: Scores) -> Iterator[Metric]:
    """How often two completions of equal score are equally likely: by sequence and per token."""
    rows = [
        (i, j, k)
        for i, example in enumerate(examples)
        for j, k in combinations(range(len(example.completions)), 2)
        if example.completions[j].score is not None
        and example.completions[j].score == example.completions[k].score
    ]
    if not rows:
        return
    groups = [i for i, _, _ in rows]
    means = [p / n for p, n in zip(policy.log_probs, policy.lengths, strict=True)]
    for name, values in (("ties", policy.log_probs), ("ties_per_token", means)):
        first, second = _both(values, rows)
        yield clustered_rate(f"gap/{name}", ties_right(first, second).tolist(), groups)


def _both(values: Sequence[Any], rows: Sequence[tuple[int, int, int]]) -> tuple[Array, Array]:
    return (
        np.asarray([values[i][j] for i, j, _ in rows]),
        np.asarray([values[i][k] for i, _, k in rows]),
    )
