"""Runs side by side on the same prompts: what `trueline compare` says, as part of the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from trueline.errors import UserError
from trueline.report.answers import spread
from trueline.report.blocks import Block, Cell, Highlight, Samples, Section, Table, Text
from trueline.report.findings import draw
from trueline.report.load import read_sample, samples_of
from trueline.report.numbers import number
from trueline.runs.record import Run

if TYPE_CHECKING:
    from trueline.evaluation.comparison import Comparison, Contrast

TITLES: dict[str, tuple[str, Literal["lower", "higher"]]] = {
    "asr": ("Attack success", "lower"),
    "over_refusal": ("Over-refusal", "lower"),
    "utility": ("Good answers", "higher"),
}
"""What each measure is called, and which direction of it is good."""

SHOWN = 16
"""Prompts whose verdict changed, on the page; `trueline compare` keeps more."""


@dataclass(frozen=True, slots=True)
class Compared:
    """A comparison's parts of the page; empty where fewer than two runs were judged."""

    sentences: Sequence[str] = ()
    highlights: Sequence[Highlight] = ()
    sections: Sequence[Section] = ()
    problems: Sequence[str] = ()


def compared(runs: Sequence[Run]) -> Compared:
    """The judged runs against the first of them, paired by prompt."""
    from trueline.evaluation.comparison import compare_runs, load_judged_runs

    judged = [run for run in runs if _is_judged(run)]
    if len(judged) < 2:
        return Compared()
    try:
        result = compare_runs(load_judged_runs([run.path for run in judged]))
    except UserError as error:
        return Compared(problems=[f"the runs cannot be compared prompt by prompt: {error}"])
    return Compared(_sentences(result), _highlights(result), list(_sections(result)))


def _is_judged(run: Run) -> bool:
    """Whether answers of this run were judged; the sandbox keeps its verdicts with the samples."""
    if run.judged:
        return True
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

    what = TITLES[contrast.scope.measure][0].lower()
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


def _highlights(result: Comparison) -> list[Highlight]:
    """The first compared run's primary measures against the baseline."""
    first = next((run for run in result.runs if run != result.baseline), None)
    found = []
    for contrast in result.contrasts:
        if contrast.run == first and contrast.primary and contrast.scope.whole:
            label, better = TITLES[contrast.scope.measure]
            note = f"{first} against {result.baseline}, same prompts"
            sure = _sure(contrast, 1 - result.confidence)
            found.append(Highlight(label, contrast.after, contrast.before, better, note, sure))
    return found


def _sections(result: Comparison) -> list[Section]:
    from trueline.evaluation.comparison import findings_of, judges_sentence, samples_of

    blocks: list[Block] = []
    for finding in findings_of(result):
        blocks += draw(finding).blocks
    whole = [c for c in result.contrasts if c.scope.whole]
    parts = [c for c in result.contrasts if not c.scope.whole]
    blocks.append(_table(whole, result, "Differences on the same prompts"))
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
    sections = [Section("Safety and usefulness", text, blocks)]
    changed = spread([read_sample(row, "") for row in samples_of(result)], SHOWN)
    if changed:
        text = "Prompts whose verdict changed: what was fixed, and what was broken."
        sections.append(Section("What changed", text, [Samples(changed)]))
    return sections


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
        rows.append([name, c.before, c.after, c.difference, counts or None, shown])
    after = "after" if several else next(run for run in result.runs if run != result.baseline)
    columns = ("", result.baseline, after, "change", "prompts", "p")
    return Table(columns, rows, title, changes=["change"], folded=folded)
