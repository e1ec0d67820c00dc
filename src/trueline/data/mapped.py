"""Examples changed, left out, or mixed by weight, one by one on their way."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, Literal, Protocol, TypeAlias

from trueline.data.load import Drop, LoadReport
from trueline.data.readers import DataError
from trueline.errors import UserError
from trueline.records import Example, Message, Text


class Stream(Protocol):
    """Examples that can be read again: of one source, of several, or changed on their way."""

    @property
    def source(self) -> str | None: ...

    @property
    def name(self) -> Any: ...

    @property
    def report(self) -> LoadReport: ...

    def __iter__(self) -> Iterator[Example]: ...


class Mapped:
    """A stream of examples as ``change`` makes them; each iteration reads the source anew.

    Args:
        examples: what is read.
        change: an example's other form, or None to leave it out.
        facts: JSON-ready; says what ``change`` does.
        empty: said where nothing is left.

    Raises:
        UserError: nothing is left.
    """

    def __init__(
        self,
        examples: Stream,
        change: Callable[[Example], Example | None],
        facts: Any,
        *,
        empty: str = "no row is left",
    ) -> None:
        self.examples, self.change, self.facts, self.empty = examples, change, facts, empty

    @property
    def source(self) -> str | None:
        """The path or hub id that is read."""
        return self.examples.source

    @property
    def report(self) -> LoadReport:
        """What became of the rows of the latest reading so far."""
        return self.examples.report

    @property
    def name(self) -> Any:
        """What stands for the examples; see :attr:`Examples.name`."""
        name = self.examples.name
        return None if name is None else [name, self.facts]

    def __iter__(self) -> Iterator[Example]:
        left = False
        for example in self.examples:
            changed = self.change(example)
            if changed is not None:
                left = True
                yield changed
        if not left:
            raise UserError(self.empty)


def position(prompt: Text, seed: int = 0) -> float:
    """Where a prompt stands in [0, 1): a hash of the prompt and the seed, and of nothing else."""
    text = prompt if isinstance(prompt, str) else repr([(m.role, m.content) for m in prompt])
    digest = hashlib.blake2b(f"{seed}\n{text}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def split_by_prompt(examples: Stream, test_size: float, seed: int = 0) -> tuple[Mapped, Mapped]:
    """Examples as (train, test), decided by a hash of the prompt and the seed.

    Every prompt falls to the test side with probability ``test_size``, whatever else is in the
    data, so adding rows moves none of the others.

    Args:
        examples: a stream that can be read again; each side reads it for itself.
        test_size: expected share of prompts on the test side, in (0, 1).
        seed: another seed, another split.

    Raises:
        UserError: ``test_size`` is out of range; while reading: the side is empty.

    Example:
        >>> from trueline.data import load_examples
        >>> rows = load_examples([{"prompt": f"q{i % 5}", "completion": "a"} for i in range(50)])
        >>> train, test = split_by_prompt(rows, 0.4)
        >>> {e.prompt for e in train} & {e.prompt for e in test}
        set()
    """
    if not 0 < test_size < 1:
        raise UserError(f"test_size must lie between 0 and 1, got {test_size}")

    def side(name: str, *, test: bool) -> Mapped:
        def change(example: Example) -> Example | None:
            return example if (position(example.prompt, seed) < test_size) == test else None

        empty = f"test_size {test_size} leaves the {name} side empty"
        return Mapped(examples, change, [name, test_size, seed], empty=empty)

    return side("train", test=False), side("test", test=True)


def as_chat(example: Example) -> Example:
    """The example with its text prompt as a user's turn and its completions as the assistant's.

    A conversational example comes back as it is.

    Example:
        >>> from trueline.records import Completion
        >>> chat = as_chat(Example("Sky?", (Completion("Blue."),)))
        >>> chat.prompt[0].role, chat.completions[0].content[0].role
        ('user', 'assistant')
    """
    if example.conversational:
        return example
    reference = example.reference_prompt
    return replace(
        example,
        prompt=_turn("user", example.prompt),
        completions=tuple(
            replace(completion, content=_turn("assistant", completion.content))
            for completion in example.completions
        ),
        reference_prompt=None if reference is None else _turn("user", reference),
    )


def _turn(role: str, text: Text) -> tuple[Message, ...]:
    assert isinstance(text, str)
    return (Message(role, text),)


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
