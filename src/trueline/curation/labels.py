"""Which of two responses is the better one, who says so, and how often a second opinion differs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from trueline.curation.jobs.disk import DiskTable, digest
from trueline.curation.texts import flat
from trueline.records import Example
from trueline.results import Metric
from trueline.stats import rate

ResponseScorer: TypeAlias = Callable[[Sequence[str], Sequence[str]], Sequence[float | None]]
"""(prompts, responses) to how good each response is, higher is better; None where unknown."""


def given_order(example: Example, pair: tuple[int, int]) -> tuple[int, int] | None:
    """(chosen, rejected) as the data have it: by scores where there are any, else by its pairs.

    Never by the order of the rows. None where the data do not say.
    """
    first, second = pair
    a, b = (example.completions[i].score for i in pair)
    if a is not None and b is not None:
        return None if a == b else (first, second) if a > b else (second, first)
    for order in (pair, (second, first)):
        if order in example.pairs:
            return order
    return None


def by_scores(pair: tuple[int, int], scores: Sequence[float | None]) -> tuple[int, int] | None:
    """(chosen, rejected) by a judge's two scores; None for a tie or where one is missing."""
    a, b = scores
    if a is None or b is None or a == b:
        return None
    return pair if a > b else (pair[1], pair[0])


def judge_pairs(
    examples: Sequence[Example],
    pairs: Sequence[tuple[int, int] | None],
    scorer: ResponseScorer,
) -> list[list[float | None] | None]:
    """A judge's scores of both responses of each pair; None where there is no pair."""
    asked = [(e, i) for e, pair in zip(examples, pairs, strict=True) for i in pair or ()]
    prompts = [flat(e.prompt) for e, _ in asked]
    responses = [flat(e.completions[i].content) for e, i in asked]
    scores = iter(scorer(prompts, responses) if asked else [])
    return [None if pair is None else [next(scores), next(scores)] for pair in pairs]


class SecondLabels:
    """Another rater's labels of the same pairs, found by prompt and texts, kept on disk."""

    def __init__(self, examples: Iterable[Example]) -> None:
        self.table = DiskTable()
        batch: list[tuple[bytes, bytes]] = []
        for example in examples:
            for pair in example.pairs:
                chosen, rejected = (repr(example.completions[i].content) for i in pair)
                key = digest(flat(example.prompt), sorted((chosen, rejected)))
                batch.append((key, b"1" if chosen < rejected else b"0"))
            if len(batch) > 1000:
                self.table.put(batch)
                batch = []
        self.table.put(batch)

    def prefers(self, example: Example, order: tuple[int, int]) -> bool | None:
        """Whether the other rater prefers the first of the two, too; None where it is silent."""
        chosen, rejected = (repr(example.completions[i].content) for i in order)
        [found] = self.table.get([digest(flat(example.prompt), sorted((chosen, rejected)))])
        return None if found is None else (found == b"1") == (chosen < rejected)


@dataclass
class ErrorCount:
    """How often a second opinion calls a label wrong, group by group."""

    wrong: Counter[str] = field(default_factory=Counter)
    told: Counter[str] = field(default_factory=Counter)

    def add(self, groups: Iterable[str], agrees: bool | None) -> None:
        """One pair: whether the second opinion agrees, None where it is silent."""
        if agrees is None:
            return
        for group in groups:
            self.told[group] += 1
            self.wrong[group] += not agrees

    def metrics(self, groups: Sequence[str], what: str) -> list[Metric]:
        """The rate of each group, with Wilson's interval."""
        return [rate(f"{what}, {group}", self.wrong[group], self.told[group]) for group in groups]
