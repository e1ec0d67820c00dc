"""What is in the data: lengths, duplicates, balance, biases, drops, and what to mend."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any, Protocol, TypeAlias, runtime_checkable

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


Rule: TypeAlias = "Callable[[DataSummary], Iterator[str]]"

MAX_LENGTH = 1024  # tokens; the trainer's default
LENGTH_BIAS = 0.6
SHORTCUT = 0.05
BALANCE = 4 / 3  # the ratio up to which KTO's authors call desirable and undesirable balanced


def advise(summary: DataSummary) -> list[str]:
    """Every rule's sentences."""
    return [sentence for rule in RULES for sentence in rule(summary)]


def drops(summary: DataSummary) -> Iterator[str]:
    """Rows that cannot be used."""
    total = sum(drop["count"] for drop in summary.dropped.values())
    if total:
        why = max(summary.dropped, key=lambda name: summary.dropped[name]["count"])
        where = summary.dropped[why]["places"][0]
        yield (
            f"{total} of {summary.rows} rows cannot be used, most often: {why} (first {where}). "
            "Mend them; --skip-bad leaves them out and counts them."
        )


def copies(summary: DataSummary) -> Iterator[str]:
    """Rows that say the same twice, or the opposite."""
    if summary.duplicates["rows"]:
        yield (
            f"{summary.duplicates['rows']} rows repeat another one word for word and weigh double; "
            "keep one of each, and see that none is in both the training and the test split."
        )
    if summary.duplicates["contradictions"]:
        yield (
            f"{summary.duplicates['contradictions']} statements are also made the other way around "
            "(the same pair swapped, or the same answer with both labels); decide which holds."
        )


def label_balance(summary: DataSummary) -> Iterator[str]:
    """Desirable against undesirable."""
    counts = summary.balance.get("label")
    if not counts:
        return
    good, bad = counts["desirable"], counts["undesirable"]
    if not (good and bad):
        only = "desirable" if good else "undesirable"
        yield f"All labels are {only}: an unpaired objective needs both kinds."
    elif max(good, bad) > BALANCE * min(good, bad):
        rare, ratio = (
            ("desirable" if good < bad else "undesirable"),
            max(good, bad) / min(good, bad),
        )
        yield (
            f"Labels are unbalanced, {good} desirable to {bad} undesirable; "
            f"{rare}_weight={ratio:.2g} makes up for it."
        )


def safety_balance(summary: DataSummary) -> Iterator[str]:
    """Harmful against safe prompts."""
    counts = summary.balance.get("safety")
    if not counts:
        return
    harmful, safe = counts.get("harmful", 0), counts.get("safe", 0)
    if not (harmful and safe):
        only = "harmful" if harmful else "safe"
        other = "over-refusal" if harmful else "refusal"
        yield f"All labeled prompts are {only}: nothing here holds {other} in check."
    elif max(harmful, safe) > 2 * min(harmful, safe):
        yield f"{harmful} harmful prompts to {safe} safe ones: balance them, or expect a tilt."
    if counts.get("unlabeled"):
        yield f"{counts['unlabeled']} rows have no safety label beside others that have one."


def length_bias(summary: DataSummary) -> Iterator[str]:
    """Length as a cue for preference."""
    rate = summary.rate("chosen_longer")
    if rate is None or rate.value is None or rate.low is None or rate.high is None:
        return
    longer = rate.low > 0.5 and rate.value > LENGTH_BIAS
    if longer or (rate.high < 0.5 and rate.value < 1 - LENGTH_BIAS):
        yield (
            f"The chosen answer is the {'longer' if longer else 'shorter'} one in "
            f"{max(rate.value, 1 - rate.value):.0%} of pairs of unequal length; a model can learn "
            "length in place of quality. A length-aware objective (simpo, r_dpo) counters it."
        )


def shortcuts(summary: DataSummary) -> Iterator[str]:
    """One constant answer, recognizable without reading the prompt."""
    for rate in summary.rates:
        part = rate.name.removeprefix("same_")
        repeated = round((rate.value or 0.0) * (rate.n or 0))
        if part != rate.name and repeated > 2 and (rate.value or 0.0) > SHORTCUT:
            yield (
                f"One and the same {part} text stands in {repeated} of {rate.n} places: a "
                "shortcut a model can learn in place of the task. Diversify it."
            )


def layout(summary: DataSummary) -> Iterator[str]:
    """Prompts without text, rows with and without messages."""
    empty, messages = summary.rate("empty_prompt"), summary.rate("conversational")
    if empty and empty.value and summary.form == "preference-implicit":
        yield (
            f"In {empty.value:.1%} of rows the two texts share no whole line, so the prompt is "
            "empty. If there is a prompt, give it its own column."
        )
    if messages and messages.value and messages.value < 1:
        yield (
            f"{messages.value:.1%} of rows are conversations and the others plain text; the chat "
            "template meets the former only. Bring them into one layout."
        )


def long_rows(summary: DataSummary) -> Iterator[str]:
    """Rows the trainer would cut."""
    prompt = summary.tokens.get("prompt")
    if prompt is None:
        return
    longest = max(part.p95 for name, part in summary.tokens.items() if name != "prompt")
    if prompt.p95 + longest > MAX_LENGTH:
        yield (
            f"Long rows reach {prompt.p95 + longest:.0f} tokens (95th percentiles of prompt and "
            f"completion together), more than max_length {MAX_LENGTH}; raise it or they are cut."
        )


RULES: tuple[Rule, ...] = (
    drops, copies, label_balance, safety_balance, length_bias, shortcuts, layout, long_rows,
)  # fmt: skip
