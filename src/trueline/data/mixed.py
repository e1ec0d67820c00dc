"""Several sources as one stream: one after the other, or drawn by weight with a seed."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, Literal, TypeAlias

from trueline.data.load import Drop, LoadReport
from trueline.data.mapped import Stream
from trueline.data.readers import DataError
from trueline.errors import UserError
from trueline.records import Example

Exhausted: TypeAlias = Literal["stop", "repeat", "drop"]


class Mixed:
    """A stream of several sources' examples; each iteration reads them anew.

    Args:
        sources: two or more, each in its own order.
        weights: one positive number a source: the next row is drawn from source i with probability
            proportional to its weight, until a source ends (no row comes twice, and the weights
            hold). None reads one source after the other, each row once.
        seed: of the drawing.

    Raises:
        UserError: weights that do not fit; while reading: text among conversations.
    """

    def __init__(
        self, sources: Sequence[Stream], weights: Sequence[float] | None = None, *, seed: int = 0
    ) -> None:
        if weights is not None:
            check_weights(weights, len(sources))
        self.sources, self.weights, self.seed = list(sources), weights, seed

    @property
    def source(self) -> str:
        """The paths or hub ids that are read."""
        return ", ".join(str(source.source) for source in self.sources)

    @property
    def name(self) -> Any:
        """What stands for the examples; see :attr:`Examples.name`."""
        names = [source.name for source in self.sources]
        return None if None in names else [names, self.weights, self.seed]

    @property
    def report(self) -> LoadReport:
        """What became of all sources' rows in the latest reading so far."""
        whole = LoadReport()
        for report in (source.report for source in self.sources):
            whole.rows += report.rows
            whole.examples += report.examples
            whole.unread.update(report.unread)
            for reason, drop in report.dropped.items():
                entry = whole.dropped.setdefault(reason, Drop())
                entry.count += drop.count
                entry.places += drop.places
        return whole

    def __iter__(self) -> Iterator[Example]:
        if self.weights is None:
            return one_layout(chain(*self.sources))
        named = {str(number): source for number, source in enumerate(self.sources)}
        drawn = draw(named, self.weights, "stop", None, self.seed, Counter())
        return one_layout(example for _, example in drawn)


def check_weights(weights: Sequence[float], count: int) -> None:
    """One positive weight for each source.

    Raises:
        UserError: there are others.
    """
    if len(weights) != count or not all(0 < weight < float("inf") for weight in weights):
        raise UserError(f"expected one positive weight for each of {count} sources")


def one_layout(examples: Iterator[Example]) -> Iterator[Example]:
    """The examples, unless some are text and some are conversations.

    Raises:
        DataError: they are.
    """
    layout: bool | None = None
    for example in examples:
        if layout not in (None, example.conversational):
            raise DataError(
                example.id or "example",
                "sources differ in layout, text and conversations; turn text into conversations "
                "(as_chat, --chat)",
            )
        layout = example.conversational
        yield example


def draw(
    sources: Mapping[str, Stream],
    weights: Sequence[float],
    exhausted: Exhausted,
    count: int | None,
    seed: int,
    ends: Counter[str],
) -> Iterator[tuple[str, Example]]:
    """Rows with their source's name, until the policy or the count says enough.

    Args:
        sources: by name.
        weights: one for each.
        exhausted: at the end of a source ``"stop"``, ``"repeat"`` it until each has been read to
            its end once, or ``"drop"`` it.
        count: stop after this many rows.
        seed: another seed, another order.
        ends: counts how often each source was read to its end.
    """
    rng = random.Random(f"mix {seed}")
    streams = {name: iter(source) for name, source in sources.items()}
    weight = dict(zip(sources, weights, strict=True))
    given = 0
    while streams and given != count:
        [name] = rng.choices(list(streams), [weight[name] for name in streams])
        row = next(streams[name], None)
        if row is None:
            ends[name] += 1
            if exhausted == "stop":
                return
            if exhausted == "drop":
                del streams[name]
                continue
            if count is None and len(ends) == len(sources):
                return
            streams[name] = iter(sources[name])
            row = next(streams[name])
        yield name, row
        given += 1
