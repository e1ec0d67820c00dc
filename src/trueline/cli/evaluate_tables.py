"""What `trueline evaluate` shows: a table at the end, the names there are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trueline.cli.common import console, out, print_json
from trueline.runs.record import Key

if TYPE_CHECKING:
    from trueline.results import Finding


def _table(title: str, judged: Sequence[Finding]) -> Any:
    """Measures down, judges across; rates of success first, then what the answers were like."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title), title_justify="left")
    table.add_column("rate [95% interval]")
    table.add_column("n", justify="right")
    for finding in judged:
        table.add_column(escape(Key.judge_of(finding) or finding.name), justify="right")
    by_name = [{m.name: m for m in f.metrics} for f in judged]
    names = list(dict.fromkeys(m.name for f in judged for m in f.metrics))
    for metric in sorted(names, key=lambda n: "," not in n):
        found = [own.get(metric) for own in by_name]
        counts = {m.n for m in found if m is not None}
        alike = len(counts) == 1
        cells = ["" if m is None else str(m) if alike else f"{m} (n={m.n})" for m in found]
        table.add_row(escape(metric), str(counts.pop()) if alike else "", *map(escape, cells))
    return table


def show(name: str, findings: Sequence[Finding], notes: Sequence[str], folder: Path) -> None:
    """The rates by benchmark, attack and judge, other findings, advice and notes."""
    from trueline.evaluation.harness.broken import NO_LONGER

    judged = [f for f in findings if Key.judge_of(f) is not None]
    for finding in findings:
        if finding.name == NO_LONGER:
            out.print(finding.summary, style="bold red", markup=False, highlight=False)
    if judged:
        out.print(_table(name, judged))
    for finding in findings:
        if finding not in judged and finding.name != NO_LONGER:
            out.print(f"{finding.name}: {finding.summary}", markup=False, highlight=False)
        if finding.advice:
            out.print(f"{finding.name}: {finding.advice}", style="yellow", markup=False)
    for note in notes:
        console.print(f"note: {note}", style="dim", markup=False, highlight=False)
    console.print(f"log, findings and samples: {folder}", markup=False, highlight=False)


def list_names_of_all(json: bool) -> None:
    """Every registered benchmark, attack, judge and utility with its first sentence."""
    from rich.markup import escape

    import trueline.reproduce.truth  # noqa: F401
    from trueline.evaluation.attacks import ATTACKS
    from trueline.evaluation.benchmarks import BENCHMARKS
    from trueline.evaluation.judges import JUDGES
    from trueline.evaluation.utility import UTILITIES

    groups: dict[str, Any] = {
        "benchmarks": BENCHMARKS, "attacks": ATTACKS, "judges": JUDGES, "utilities": UTILITIES,
    }  # fmt: skip
    if json:
        print_json({k: {n: p.summary for n, p in r.items()} for k, r in groups.items()})
        return
    for kind, registry in groups.items():
        out.print(f"[bold]{kind}[/bold]")
        for name, plugin in registry.items():
            out.print(f"  [green]{name}[/green]  {escape(plugin.summary)}", highlight=False)
