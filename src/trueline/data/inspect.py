"""What is in the data: lengths, duplicates, balance, biases, drops, and what to mend."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any, Protocol, runtime_checkable

from trueline.data.advice import advise
from trueline.data.load import Examples
from trueline.data.tally import Encoded, Lengths, Tally
from trueline.records import Example
from trueline.results import Finding, Metric


@runtime_checkable
class Says(Protocol):
    """An encoder that says what became of the rows."""

    def said(self) -> list[str]: ...


@dataclass(frozen=True, slots=True)
class DataSummary:
    """What :func:`inspect_examples` found.

    Args:
        form: the data's form; None for plain iterables of examples.
        rows, examples, completions, pairs: counts; ``rows`` includes the dropped ones.
        characters, tokens: lengths of each part (prompt, chosen, rejected, desirable, undesirable,
            completion); ``tokens`` is empty where nothing was encoded.
        duplicates: repeated prompts, repeated rows (pairs), and contradictions: the same pair both
            ways around, or the same answer labeled both ways.
        balance: counts of labels and of safety labels.
        rates: shares with n and a 95% Wilson interval.
        dropped: for each reason the count and the first places.
        unread: for each column that is not read the rows in which it holds something.
        encoding: what became of the rows as tokens, in sentences; empty where nothing was encoded.
        advice: what to mend, in sentences.
    """

    form: str | None
    rows: int
    examples: int
    completions: int
    pairs: int
    characters: dict[str, Lengths]
    tokens: dict[str, Lengths]
    duplicates: dict[str, int]
    balance: dict[str, dict[str, int]]
    rates: tuple[Metric, ...]
    dropped: dict[str, Any]
    unread: dict[str, int] = field(default_factory=dict)
    encoding: list[str] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)

    def rate(self, name: str) -> Metric | None:
        """A share by name, or None where it is not defined for this data."""
        return next((metric for metric in self.rates if metric.name == name), None)

    @property
    def finding(self) -> Finding:
        """The counts and shares, with what to mend as its words."""
        counts = tuple(
            Metric(name, float(getattr(self, name)))
            for name in ("rows", "examples", "completions", "pairs")
        )
        said = f"{self.rows} rows, {self.examples} of them read."
        return Finding("data", said, (*counts, *self.rates), " ".join(self.advice))

    def to_frame(self) -> Any:
        """Counts and shares as a pandas DataFrame, one a row."""
        return self.finding.to_frame()

    def _repr_html_(self) -> str:
        """How a notebook shows it."""
        return self.finding._repr_html_()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready data."""
        return asdict(self)


def inspect_examples(
    examples: Iterable[Example],
    *,
    encode: Callable[[Example], Encoded] | None = None,
    limit: int | None = None,
) -> DataSummary:
    """Read the examples once and say what is in them and what to mend.

    Args:
        examples: a stream from :func:`~trueline.data.load_examples`, or any examples.
        encode: turns an example into tokens; with it lengths are counted in tokens too.
        limit: look at the first ``limit`` examples only.

    Raises:
        DataError: a row cannot be used and the stream does not skip bad ones.

    Example:
        >>> from trueline.data import load_examples
        >>> rows = [{"prompt": "Sky?", "chosen": "Blue.", "rejected": "Green."}] * 2
        >>> inspect_examples(load_examples(rows)).duplicates
        {'prompts': 1, 'rows': 1, 'contradictions': 0}
    """
    tally = Tally()
    for example in islice(examples, limit):
        tally.add(example, encode(example) if encode else None)
    counts = tally.counts
    loaded = examples if isinstance(examples, Examples) else None
    summary = DataSummary(
        form=loaded.form.name if loaded else None,
        rows=loaded.report.rows if loaded else counts["examples"],
        examples=counts["examples"],
        completions=counts["completions"],
        pairs=counts["pairs"],
        characters={part: Lengths.of(values) for part, values in tally.lengths.items()},
        tokens={part: Lengths.of(values) for part, values in tally.tokens.items()},
        duplicates=tally.duplicates(),
        balance=tally.balance(),
        rates=tally.rates(),
        dropped=loaded.report.to_dict()["dropped"] if loaded else {},
        unread=dict(loaded.report.unread) if loaded else {},
        encoding=encode.said() if isinstance(encode, Says) else [],
    )
    summary.advice.extend(advise(summary))
    return summary
