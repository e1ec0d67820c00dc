"""Runs side by side on the same prompts: what `trueline compare` says, as part of the page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from trueline.errors import UserError
from trueline.report.blocks import Block, Cell, Decision, Section, Shown, Table, Text
from trueline.report.decision import Bounds, behind, decide
from trueline.report.drawing.numbers import number
from trueline.report.findings import draw
from trueline.report.pages.load import samples_of
from trueline.report.rows import Rows
from trueline.runs.record import Run

if TYPE_CHECKING:
    from trueline.evaluation.comparison import Comparison, Contrast

TITLES = {"asr": "attack success", "over_refusal": "over-refusal", "utility": "good answers"}
"""What each measure is called."""


@dataclass(frozen=True, slots=True)
class Compared:
    """The judged answers' parts of the page; empty where no run was judged."""

    sentences: Sequence[str] = ()
    sections: Sequence[Section] = ()
    problems: Sequence[str] = ()
    decisions: Sequence[Decision] = ()
    bounds: str = ""
    rows: Rows = field(default_factory=Rows)


def compared(runs: Sequence[Run], bounds: Bounds | None = None) -> Compared:
    """A verdict for each judged run and the rows behind it; of several, each against the first,
    paired by prompt."""
    from trueline.evaluation.comparison import compare_runs, load_judged_runs

    judged = [run for run in runs if _is_judged(run, alone=len(runs) == 1)]
    if not judged:
        return Compared()
    try:
        read = load_judged_runs([run.path for run in judged])
        named = [replace(one, name=run.name) for one, run in zip(read, judged, strict=True)]
        result = compare_runs(named)
    except UserError as error:
        return Compared(problems=[f"the judged answers cannot be compared: {error}"])
    rows = Rows({run.name: run.judgements for run in named})
    several = len(named) > 1
    said = [f"{run}: {found.summary}" for run, found in result.void.items()]
    return Compared(
        _sentences(result),
        list(_sections(result)) if several else [],
        [] if several else [note for note in result.notes if note not in said],
        decide(result, bounds, rows.only_attack),
        (bounds or Bounds()).told(result.baseline if several else None),
        rows,
    )


def _is_judged(run: Run, *, alone: bool) -> bool:
    """Whether answers of this run were judged; the sandbox keeps its verdicts with the samples."""
    if run.judged:
        return True
    if alone:
        return any("verdict" in row and "entity" in row for row in run.samples)
    return any(a.verdict for s in samples_of(run) for a in s.answers)


def _sentences(result: Comparison) -> list[str]:
    """A paragraph for each run: what changed from what to what, and what was not shown to."""
    told = []
    for run in result.runs:
        own = [c for c in result.contrasts if c.run == run and c.primary and c.scope.whole]
        if own:
            parts = "; ".join(_part(c, 1 - result.confidence) for c in own)
            told.append(f"{run} against {result.baseline}: {parts}.")
    return told


def _part(contrast: Contrast, alpha: float) -> str:
    from trueline.evaluation.comparison.words import difference_words

    what = TITLES[contrast.scope.measure]
    before, after = contrast.before, contrast.after
    if before.value is None or after.value is None:
        return f"{what} was not judged in both"
    ends = f"{number(before.value, before.unit)} to {number(after.value, after.unit)}"
    if _sure(contrast, alpha):
        way = "fell" if after.value < before.value else "rose"
        return f"{what} {way} from {ends} ({difference_words(contrast.difference)})"
    margin = contrast.non_inferiority
    safe = margin is not None and margin.shown
    beyond = f", and not worse by {100 * margin.margin:g} points" if margin and safe else ""
    return f"no difference shown in {what} ({ends}){beyond}"


def _sure(contrast: Contrast, alpha: float) -> bool:
    p = contrast.p_value if contrast.p_holm is None else contrast.p_holm
    return p is not None and p < alpha


def _sections(result: Comparison) -> Iterator[Section]:
    from trueline.evaluation.comparison import findings_of, judges_sentence

    blocks: list[Block] = [Text("\n\n".join(_sentences(result)))]
    for finding in findings_of(result):
        blocks += draw(finding).blocks
    whole = [c for c in result.contrasts if c.scope.whole]
    parts = [c for c in result.contrasts if not c.scope.whole]
    blocks.append(_table(whole, result, "Over all benchmarks and attacks"))
    if parts:
        title = f"The same for each benchmark and attack ({len(parts)} rows)"
        blocks.append(_table(parts, result, title, folded=True))
    notes = [*result.notes, *map(judges_sentence, result.judges)]
    if notes:
        blocks.append(Text("\n\n".join(notes), note=True))
    text = (
        f"Every run against {result.baseline}, paired by prompt. Intervals are of the difference "
        "itself; p-values of the primary measures are adjusted together."
    )
    yield Section("Differences on the same prompts", text, blocks)


def _table(
    contrasts: Sequence[Contrast], result: Comparison, title: str, *, folded: bool = False
) -> Table:
    from trueline.evaluation.comparison.words import p_words

    several = len(result.runs) > 2
    rows: list[list[Cell]] = []
    for c in contrasts:
        name = f"{c.run}: {c.scope}" if several else str(c.scope)
        p = c.p_value if c.p_holm is None else c.p_holm
        counts = "" if c.fixed is None else f"{c.fixed} fixed, {c.broken} broken"
        shown = None if p is None else p_words(p).removeprefix("= ").replace(" ", "\u00a0")
        old, new = behind(result.baseline, c.scope, c.run), behind(c.run, c.scope, result.baseline)
        changed = Shown(counts, c.run, {**new, "outcome": "differs"}) if counts else None
        rows.append(
            [name, Shown(c.before, result.baseline, old), Shown(c.after, c.run, new), c.difference,
             changed, shown]
        )  # fmt: skip
    after = "after" if several else next(run for run in result.runs if run != result.baseline)
    columns = ("", result.baseline, after, "change", "prompts", "p")
    return Table(columns, rows, title, changes=["change"], folded=folded)
