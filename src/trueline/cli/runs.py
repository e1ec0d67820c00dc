"""`trueline runs [FOLDER]`: which runs there are, how far each is, and what came of it; `trueline
watch RUN`: one training as a page, while it goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trueline.cli.common import Json, console, out, print_json


def runs(
    folder: Annotated[Path, typer.Argument(help="Runs in it and below it are listed.")] = Path(
        "runs"
    ),
    json: Json = False,
) -> None:
    """List runs: what each is, whether it is finished, at work or broken off, and its figures.

    Trainings, evaluations, curated data and studies alike. A run whose process has died is broken
    off; --json names the command that began it.
    """
    from rich.markup import escape
    from rich.table import Table

    from trueline.errors import printable
    from trueline.runs.listing import listed

    found = listed(folder)
    if json:
        print_json([entry.to_dict() for entry in found])
        return
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("run", "verb", "objective", "data", "state", "figures"):
        table.add_column(column, overflow="fold", no_wrap=column == "run")
    for entry in found:
        state = f"{entry.state or 'not recorded'}{f': {entry.reason}' if entry.reason else ''}"
        cells = (entry.name, entry.verb, entry.objective, entry.data, state, entry.figures)
        table.add_row(*(escape(printable(str(cell or ""))) for cell in cells))
    out.print(table, markup=False, highlight=False)
    if not found:
        console.print(f"no runs in {folder}", markup=False, highlight=False)


def watch(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder a training writes.")],
    output: Annotated[
        Path | None, typer.Option("--out", help="Where to; live.html in the run unless given.")
    ] = None,
    every: Annotated[
        float, typer.Option(help="Seconds between two looks at the log.", min=0.1)
    ] = 10.0,
    once: Annotated[
        bool, typer.Option("--once", help="Write the page as it is now, and end.")
    ] = False,
    json: Json = False,
) -> None:
    """Keep one HTML file of a training up to date until the training has ended.

    The page shows the curves, chosen and rejected apart, gradient entanglement where it is
    measured, and alarms in words; open in a browser, it loads itself anew. No server is needed.
    """
    from trueline.runs.live import watch as verb

    page = verb(run, out=output, every=every, once=once, quiet=json)
    print_json({"page": str(page)}) if json else out.print(str(page), markup=False, soft_wrap=True)
