"""`trueline watch RUN`: a training as a page, while it goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trueline.cli.common import Json, out, print_json


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
