"""`trueline demo`: the whole story in the sandbox, from a base model that complies to a report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from trueline.cli.common import Json, console, out, print_json

if TYPE_CHECKING:
    from rich.table import Table

    from trueline.results import Metric
    from trueline.runs.demo import Story


def demo(
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the runs and the report: runs/demo or runs/demo-diffusion unless said."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Another world, other data, other weights.")] = 0,
    size: Annotated[
        Literal["demo", "test"],
        typer.Option(help="demo, or test: seconds, and a model that knows little."),
    ] = "demo",
    jobs: Annotated[
        int,
        typer.Option(
            help="Processes that align and measure, of one thread each; 0: none but this.", min=0
        ),
    ] = 2,
    diffusion: Annotated[
        bool, typer.Option("--diffusion", help="The small world of pictures instead.")
    ] = False,
    json: Json = False,
) -> None:
    """Build a small world, align a model in it, and show what changed, here and in other worlds.

    The base model answers everything, harmful requests too. KLDO and DPO align it on compliance-
    refusal data, and DPO once more with the defense: pairs whose answers are begun already. All
    are attacked, directly, in other words, and with their answers begun for them, asked and
    probed, on things that no alignment data named. Ends in a table and OUTPUT/report.html, where
    each figure stands beside its mean over the study's worlds.

    With --diffusion the world is one of small pictures, aligned by fine-tuning, Diffusion-DPO and
    DSPO (needs the extra diffusion).
    """
    story: Story
    if diffusion:
        from trueline.runs.diffusion import demo as pictures

        output = output or Path("runs/demo-diffusion")
        story = pictures.demo(output, seed=seed, size=size, jobs=jobs, quiet=json)
    else:
        from trueline.runs import demo as words

        output = output or Path("runs/demo")
        story = words.demo(output, seed=seed, size=size, jobs=jobs, quiet=json)
    if json:
        print_json(story.to_dict())
        return
    _show_pictures(story) if diffusion else _show(story)
    for line in story.summary.split("\n\n"):
        out.print(line, highlight=False)
    console.print(f"{story.seconds:.0f} s in all. The whole story: [bold]{story.page}[/bold]")


def _show(story: Story) -> None:
    """Measures down, models across, each with its interval; below it, where there is one, its mean
    over other worlds."""
    from rich.table import Table

    table = Table(show_lines=True, title="on things no alignment data named", title_justify="left")
    table.add_column("[95% interval]")
    for measurement in story.measurements:
        table.add_column(measurement.name, justify="right")
    rates = [m.name for m in story.measurements[0].safety.metrics if m.unit == "rate"]
    for name in rates:
        own = [m.safety[name] for m in story.measurements]
        _row(table, story, f"{name} (n={own[0].n})", own, name)
    apart = [m.separation["bhattacharyya_distance"] for m in story.measurements]
    _row(table, story, "separation: Bhattacharyya distance", apart, "separation")
    out.print(table)


def _row(table: Table, story: Story, title: str, own: Sequence[Metric], name: str) -> None:
    """A measure here and, where it is known, elsewhere."""
    cells = [_cell(metric) for metric in own]
    over = [story.elsewhere[m.name][name] for m in story.measurements if story.elsewhere]
    if over:
        counts = {metric.n for metric in over}
        many = f"{counts.pop()} " if len(counts) == 1 else ""
        title = f"{title}\n\nmean of {many}other worlds"
        cells = [
            f"{cell}\n{_cell(metric)}" + ("" if many else f"\n{metric.n} worlds")
            for cell, metric in zip(cells, over, strict=True)
        ]
    table.add_row(title, *cells)


def _cell(metric: Metric) -> str:
    """The value over its interval."""
    return str(metric).replace(" [", "\n[")


def _show_pictures(story: Story) -> None:
    """Models down, what they paint across."""
    from rich.table import Table

    names = [metric.name for metric in story.measurements[0].finding.metrics]
    table = Table(title="what the models paint", title_justify="left")
    for column in ("model", *names):
        table.add_column(column)
    for m in story.measurements:
        table.add_row(m.title, *(str(m.finding[name]) for name in names))
    out.print(table)
