"""`trueline inspect-export RUN FILE`: an evaluation's log for Inspect's viewer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trueline.cli.common import Json, console, print_json


def inspect_export(
    run: Annotated[Path, typer.Argument(help="An evaluation folder or a run directory.")],
    output: Annotated[Path, typer.Argument(help="File to write, ending in .eval.")],
    json: Json = False,
) -> None:
    """Write an evaluation's log as an Inspect .eval file; `inspect view` shows it."""
    from trueline.evaluation.comparison import load_judged_run
    from trueline.evaluation.inspect_log import export_inspect

    judged = load_judged_run(run)
    path = export_inspect(judged, output)
    if json:
        print_json({"output": str(path), "rows": len(judged.judgements)})
    else:
        console.print(f"wrote {path}", markup=False, highlight=False, soft_wrap=True)
