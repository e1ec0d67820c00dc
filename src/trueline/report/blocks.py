"""What a report is made of: plain data that says what to show and nothing about how it looks.

Every string is data. It may come from a model or from an attacker, and is escaped wherever it
ends up: in the page, in a figure's hover text, in the page's JSON.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from trueline.errors import UserError
from trueline.report.pictures import Curves, Heatmap, ImageGrid, RateChart, Scatter
from trueline.report.rows import Rows
from trueline.results import Metric


@dataclass(frozen=True, slots=True)
class Shown:
    """A table's cell that says whose it is, and opens the rows it counts.

    Args:
        value: the number, or a few words.
        model: whose mark its interval bears; empty where the table's own heads tell.
        rows: what the page's rows are asked for (:mod:`trueline.report.rows`); empty for no link.
    """

    value: Metric | str
    model: str = ""
    rows: Mapping[str, str] = field(default_factory=dict)


Cell: TypeAlias = str | int | float | Metric | Shown | None
"""A table's cell. A Metric is drawn with its interval and reads "unscored" without a value; None is
a dash: there is nothing to say."""


@dataclass(frozen=True, slots=True)
class Text:
    """Paragraphs; a blank line separates them. ``note=True`` sets them apart, as advice."""

    text: str
    note: bool = False


@dataclass(frozen=True, slots=True)
class Highlight:
    """One number that the reader should take away.

    Args:
        label: what it is, in the reader's words: "Attack success".
        value: now, for the model the report is about.
        before: the same number for the model it is compared with, or None.
        better: which direction is good; None where there is no good direction.
        sure: whether the two are known to differ; if not, the page says so and marks neither.
        note: a few words below the number.
        model, before_model: whose marks the two bear; none for a model before and after.
    """

    label: str
    value: Metric
    before: Metric | None = None
    better: Literal["lower", "higher"] | None = None
    note: str = ""
    sure: bool = True
    model: str = ""
    before_model: str = ""


@dataclass(frozen=True, slots=True)
class Highlights:
    """A row of a few numbers."""

    items: Sequence[Highlight]


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells under column heads; the first column names its row.

    ``compare`` says whose metrics share the little interval bars' scale: those of a row (models
    stand in columns) or those of a column (models stand in rows). Rates always run from 0 to 1.
    ``changes`` names the columns that hold differences: they get a sign, percentage points for
    rates, and a scale of their own around zero. ``folded`` shows its title alone until asked.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    title: str = ""
    caption: str = ""
    compare: Literal["row", "column"] = "row"
    changes: Sequence[str] = ()
    folded: bool = False

    def __post_init__(self) -> None:
        for name in self.changes:
            if name not in self.columns:
                raise UserError(
                    f"table {self.title!r}: no column {name!r} among {list(self.columns)}"
                )
        for row in self.rows:
            if len(row) != len(self.columns):
                raise UserError(
                    f"table {self.title!r}: a row has {len(row)} cells and there are "
                    f"{len(self.columns)} columns"
                )


@dataclass(frozen=True, slots=True)
class Answer:
    """What one model answered. ``verdict`` is the judge's word; ``bad`` whether it is a failure."""

    model: str
    text: str
    verdict: str = ""
    bad: bool | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """A prompt and the models' answers. ``sensitive`` blurs them until they are asked for."""

    prompt: str
    answers: Sequence[Answer]
    sensitive: bool = False
    label: str = ""


@dataclass(frozen=True, slots=True)
class Samples:
    """Prompts with each model's answer side by side."""

    items: Sequence[Sample]
    title: str = ""
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """Names and values (nested mappings are flattened with dots), folded away unless ``open``.

    ``command`` is shown first, as what to type to run it again.
    """

    title: str
    items: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""
    open: bool = False


@dataclass(frozen=True, slots=True)
class Price:
    """One thing that a decision goes by: a rate against its bound.

    Args:
        name: what it is, such as "prefill (attack)"; empty where the column says it.
        value: the rate, unscored where it was not measured.
        bound: how far it may go; None where there is none for it.
        change: its difference from the baseline, or None.
        rows: what opens the rows behind the rate.
    """

    name: str
    value: Metric
    bound: float | None = None
    change: Metric | None = None
    rows: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether a model may ship, in a sentence, and what that rests on.

    Args:
        model: its name.
        verdict: ``"ship"``, ``"do not ship"`` or ``"undecided"``.
        reason: the sentence, without the verdict.
        prices: its worst attack, over-refusal and good answers, in this order.
        role: what else to know of the model: "baseline".
    """

    model: str
    verdict: Literal["ship", "do not ship", "undecided"]
    reason: str
    prices: Sequence[Price] = ()
    role: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A question with its short answer, the sentence it stands on, and what to try."""

    question: str
    answer: str
    text: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Verdicts:
    """Questions with their answers, one under the other."""

    items: Sequence[Verdict]
    title: str = ""


Block: TypeAlias = (
    Text
    | Highlights
    | Verdicts
    | Table
    | RateChart
    | Scatter
    | Curves
    | Heatmap
    | Samples
    | ImageGrid
    | Facts
    | Rows
)


@dataclass(frozen=True, slots=True)
class Section:
    """A heading, what it says in words, and what shows it."""

    title: str
    text: str = ""
    blocks: Sequence[Block] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """The whole page: the summary in words first, then the sections.

    Args:
        title: the page's heading.
        summary: the result in words; a blank line separates paragraphs.
        told: paragraphs of it that a section tells at length, and the page's head leaves out.
        sections: what follows.
        highlights: the few numbers under the summary.
        subtitle: one line under the title: the model, the date, the objective.
        decisions: a verdict for each model; with them the page begins with these, and tells the
            summary in a section of its own.
        bounds: what the decisions go by, in a sentence.
        models: their names, in the order of their marks: one mark and color a model everywhere.
        refresh: seconds after which a browser loads the page anew; 0 for never.
    """

    title: str
    summary: str
    sections: Sequence[Section] = ()
    highlights: Sequence[Highlight] = ()
    subtitle: str = ""
    told: Sequence[str] = ()
    decisions: Sequence[Decision] = ()
    bounds: str = ""
    models: Sequence[str] = ()
    refresh: int = 0
