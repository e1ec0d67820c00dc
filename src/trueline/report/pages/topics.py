"""Findings as sections of the page: what belongs together stands together, runs side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from trueline.errors import UserError
from trueline.evaluation.harness.summarize import FIRST
from trueline.report.blocks import Block, Cell, Section, Shown, Table, Text, Verdicts
from trueline.report.drawing.numbers import words
from trueline.report.findings import draw, scatter_panel
from trueline.report.pictures import Curves, Heatmap, RateChart, Scatter
from trueline.results import Finding
from trueline.runs.record import Key, Run

Found: TypeAlias = tuple[Run, Finding]
Behind: TypeAlias = Callable[[str, str, str], Mapping[str, str]]
"""From run, finding and metric to what opens the rows behind it; empty for none."""

LONG = 5
"""Rows of numbers from which on a table is folded away where a figure shows the same."""

WHEN = ("before", "after", "change")
"""What metrics of two models end in: their table has a column for each."""


@dataclass(frozen=True, slots=True)
class Topic:
    """A section that gathers findings: those of these names, or whose names begin so."""

    title: str
    names: tuple[str, ...]
    prefixes: tuple[str, ...] = ()

    def holds(self, finding: Finding) -> bool:
        """Whether a finding belongs here."""
        return finding.name in self.names or any(map(finding.name.startswith, self.prefixes))


VERDICT = Topic("What training did, and why", (Key.VERDICT,))
SAFETY = Topic("Safety", (Key.SAFETY,), (*FIRST, Key.JUDGED, "agreement of ", f"{Key.SAFETY} ("))
SEPARATION = Topic("Separation", (), (Key.SEPARATION,))
ENTANGLEMENT = Topic("Gradient entanglement", (), (Key.ENTANGLEMENT,))
RANKING = Topic("Ranking, the alignment gap and difficulty", (Key.RANKING,))
HELD_OUT = Topic("Held-out pairs", (Key.HELD_OUT,))


def topic_section(
    topic: Topic, runs: Sequence[Run], link: Behind | None = None
) -> Iterator[Section]:
    """The topic's section, if any run has findings for it; ``link`` tells the rows of a rate."""
    found = [(run, f) for run in runs for f in run.findings if topic.holds(f)]
    if found:
        yield _section(topic.title, found, runs, link)


def other_sections(topics: Sequence[Topic], runs: Sequence[Run]) -> Iterator[Section]:
    """One section for each further name of findings."""
    found = [(run, f) for run in runs for f in run.findings if not any(t.holds(f) for t in topics)]
    for name in dict.fromkeys(f.name for _, f in found):
        own = [(run, f) for run, f in found if f.name == name]
        yield _section(name[:1].upper() + name[1:].replace("_", " "), own, runs)


def _section(
    title: str, found: Sequence[Found], runs: Sequence[Run], link: Behind | None = None
) -> Section:
    if title == VERDICT.title:
        return Section(title, "", [b for run, f in found for b in _drawn([(run, f)], runs)])
    blocks: list[Block] = list(_scatters(found, runs))
    names = list(dict.fromkeys(f.name for _, f in found))
    for name in names:
        own = [(run, f) for run, f in found if f.name == name]
        blocks += _told(own, runs, alone=len(names) == 1)
        drawn = list(_drawn(own, runs))
        blocks += drawn
        shown = drawn or any("scatter" in f.figures for _, f in own)
        blocks += _numbers(own, len(names) > 1, link, fold=bool(shown))
    advice = dict.fromkeys(f.advice for _, f in found if f.advice)
    blocks += [Text(text, note=True) for text in advice]
    return Section(title, found[0][1].summary if len(found) == 1 else "", blocks)


def _told(own: Sequence[Found], runs: Sequence[Run], *, alone: bool) -> Iterator[Block]:
    """What each finding says; where the section has only one, its text stands there already."""
    if alone and len(own) == 1:
        return
    texts = [
        f"{run.name}: {f.summary}" if len(runs) > 1 else f.summary for run, f in own if f.summary
    ]
    if texts:
        yield Text("\n\n".join(texts))


def _scatters(found: Sequence[Found], runs: Sequence[Run]) -> Iterator[Block]:
    """All planes of hidden states side by side."""
    drawn = [(run, f) for run, f in found if "scatter" in f.figures]
    panels = []
    for run, finding in drawn:
        several = sum(other is run for other, _ in drawn) > 1
        label = finding.name if len(runs) == 1 else run.name
        label = f"{run.name}, {finding.name}" if several and len(runs) > 1 else label
        try:
            panels.append(scatter_panel(finding.figures["scatter"], label, _captioned(finding)))
        except (KeyError, TypeError, UserError) as error:
            run.missing.append(f"the scatter of {finding.name} cannot be drawn ({error})")
    if panels:
        yield Scatter(panels)


def _captioned(finding: Finding) -> str:
    by_name = {metric.name: metric for metric in finding.metrics}
    names = (("bhattacharyya_distance", "Bhattacharyya distance"), ("silhouette", "silhouette"))
    return ", ".join(f"{title} {words(by_name[name])}" for name, title in names if name in by_name)


def _drawn(own: Sequence[Found], runs: Sequence[Run]) -> Iterator[Block]:
    """Every other figure; with several runs each says whose it is."""
    for run, finding in own:
        rest = {kind: data for kind, data in finding.figures.items() if kind != "scatter"}
        drawn = draw(replace(finding, figures=rest))
        run.missing += drawn.problems
        for block in drawn.blocks:
            yield _titled(block, run.name) if len(runs) > 1 else block


def _titled(block: Block, name: str) -> Block:
    if isinstance(block, Curves | Heatmap | RateChart | Scatter | Verdicts):
        return replace(block, title=f"{name}: {block.title}" if block.title else name)
    return block


def _numbers(
    own: Sequence[Found], titled: bool, link: Behind | None, *, fold: bool
) -> Iterator[Block]:
    """Metrics as rows, runs as columns."""
    if len(own) == 1 and any(m.name.endswith(", before") for m in own[0][1].metrics):
        yield _before_and_after(own[0][1], titled)
        return
    names = list(dict.fromkeys(metric.name for _, f in own for metric in f.metrics))
    columns: list[Mapping[str, Cell]] = [
        {m.name: Shown(m, run.name, link(run.name, f.name, m.name) if link else {})
         for m in f.metrics} for run, f in own
    ]  # fmt: skip
    rows = [[readable(name), *(known.get(name) for known in columns)] for name in names]
    if rows:
        folded = fold and len(rows) >= LONG
        title = own[0][1].name if titled else ""
        if folded:
            title = f"All {len(rows)} numbers" + (f": {title}" if title else "")
        yield Table(("", *(run.name for run, _ in own)), rows, title, folded=folded)


def _before_and_after(finding: Finding, titled: bool) -> Table:
    """Metrics of a model before and after training, side by side with their change."""
    places: dict[str, dict[str, Cell]] = {}
    for metric in finding.metrics:
        name, _, when = metric.name.rpartition(", ")
        if when not in WHEN:
            name, when = metric.name, "after"
        places.setdefault(name, {})[when] = metric
    used = [when for when in WHEN if any(when in cells for cells in places.values())]
    rows = [[readable(name), *(cells.get(w) for w in used)] for name, cells in places.items()]
    title = finding.name if titled else ""
    return Table(("", *used), rows, title, changes=[w for w in used if w == "change"])


def readable(name: str) -> str:
    """A metric's name for reading, without its namespace.

    Example:
        >>> readable("entangle/change_chosen"), readable("gap/head_proxy/cosine")
        ('change chosen', 'cosine')
    """
    return name.rsplit("/", 1)[-1].replace("_", " ")
