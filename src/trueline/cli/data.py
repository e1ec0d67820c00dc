"""`trueline data`: look at data and turn it from one form into another."""

from __future__ import annotations

import typer

app = typer.Typer(no_args_is_help=True, help="Inspect, convert and curate data.")


@app.callback()
def root() -> None:
    """Inspect, convert and curate data."""
