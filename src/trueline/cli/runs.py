"""`trueline runs [FOLDER]`: which runs there are, how far each is, and what came of it."""

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
