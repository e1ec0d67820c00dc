"""What every verb uses: results and JSON on stdout, the console on stderr, options and tables."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from trueline.processes import is_first
from trueline.terminal import console, out

if TYPE_CHECKING:
    from trueline.results import Finding

__all__ = [
    "READING",
    "Form",
    "Json",
    "Limit",
    "Name",
    "SkipBad",
    "Split",
    "console",
    "metrics",
    "out",
]
__all__ += ["print_json"]

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]

Split = Annotated[str, typer.Option(help="Split of a hub data set or of a directory.")]
Name = Annotated[str | None, typer.Option(help="Configuration of a hub data set.")]
Form = Annotated[str | None, typer.Option(help="The data's form, where its columns do not tell.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave bad rows out and count them.")]
Limit = Annotated[int | None, typer.Option(help="Stop after this many examples.")]

READING = {
    "split": (Split, "train"),
    "name": (Name, None),
    "form": (Form, None),
    "skip_bad": (SkipBad, False),
    "limit": (Limit, None),
}
"""How data are read: names to (annotation, default)."""


def print_json(value: Any) -> None:
    """One JSON document on stdout, and nothing else; of several processes the first prints it."""
    if is_first():
        print(json.dumps(value, indent=2, default=str, ensure_ascii=False))


def metrics(finding: Finding) -> Table:
    """A finding's metrics, one a row."""
    table = Table(title=finding.name, title_justify="left")
    table.add_column("")
    table.add_column("value [interval]", justify="right")
    for metric in finding.metrics:
        table.add_row(Text(metric.name.replace("_", " ")), Text(str(metric)))
    return table
