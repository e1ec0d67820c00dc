"""`trueline report RUN ...`: one HTML file that shows what one run did, or compares several."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trueline.cli.common import Json, console, print_json


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories.")],
    out: Annotated[
        Path | None,
        typer.Option(help="Where to; report.html in the run, or here for several runs."),
    ] = None,
    json: Json = False,
) -> None:
    """Write one self-contained HTML file that shows what one run did, or compares several.

    A run is a folder that align, evaluate, diagnose or compare wrote; evaluations in folders below
    it count as its own. Of several judged runs the first is the baseline, and the others are
    compared with it prompt by prompt.
    """
    from trueline.runs.report import report as verb

    page = verb(*runs)
    target = out or (runs[0] / "report.html" if len(runs) == 1 else Path("report.html"))
    path, missing = page.save(target), page.missing
    for run, pieces in missing.items():
        for piece in pieces:
            console.print(f"{run}: {piece}", markup=False, highlight=False)
    if json:
        print_json({"report": str(path), "runs": [str(run) for run in runs], "missing": missing})
    else:
        console.print(f"wrote {path}", markup=False, highlight=False, soft_wrap=True)
