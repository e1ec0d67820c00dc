"""`trueline demo`: the whole story in the sandbox, from a base model that complies to a report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from trueline.cli.common import Json, console, out, print_json

if TYPE_CHECKING:
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
    diffusion: Annotated[
        bool, typer.Option("--diffusion", help="The small world of pictures instead.")
    ] = False,
    json: Json = False,
) -> None:
    """Build a small world, align a model in it, and show what changed.

    The base model answers everything, harmful requests too. KLDO on compliance-refusal data and
    DPO on preference data align it, and DPO on the first data, to tell objective from data. All
    are attacked, asked and probed on things that no alignment data named. Ends in a table and
    OUTPUT/report.html.

    With --diffusion the world is one of small pictures, aligned by fine-tuning, Diffusion-DPO and
    DSPO (needs the extra diffusion).
    """
    story: Story
    if diffusion:
        from trueline.runs.diffusion import demo as pictures

        story = pictures.demo(output or "runs/demo-diffusion", seed=seed, size=size, quiet=json)
    else:
        from trueline.runs import demo as words

        story = words.demo(output or "runs/demo", seed=seed, size=size, quiet=json)
    if json:
        print_json(story.to_dict())
        return
    _show_pictures(story) if diffusion else _show(story)
    for line in story.summary.split("\n\n"):
        out.print(line, highlight=False)
    console.print(f"{story.seconds:.0f} s in all. The whole story: [bold]{story.page}[/bold]")


def _show(story: Story) -> None:
    """Measures down, models across, each with its interval."""
    from rich.table import Table

    base, *_ = story.measurements
    table = Table(show_lines=True, title="on things no alignment data named", title_justify="left")
    table.add_column("rate [95% interval]")
    for measurement in story.measurements:
        table.add_column(measurement.name, justify="right")
    for index, metric in enumerate(base.safety.metrics):
        cells = [_cell(m.safety.metrics[index]) for m in story.measurements]
        table.add_row(f"{metric.name} (n={metric.n})", *cells)
    for name, title in (
        ("bhattacharyya_distance", "separation: Bhattacharyya distance"),
        ("silhouette", "separation: silhouette"),
    ):
        table.add_row(title, *(_cell(m.separation[name]) for m in story.measurements))
    out.print(table)


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
