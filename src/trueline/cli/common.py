"""What every verb uses: results and JSON on stdout, the console on stderr, options and tables."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core
from rich.table import Table
from rich.text import Text
from typer.core import TyperCommand

from trueline.processes import is_first
from trueline.terminal import console, out

if TYPE_CHECKING:
    from trueline.results import Finding

__all__ = [
    "CONTEXT",
    "READING",
    "Config",
    "Form",
    "Json",
    "Limit",
    "Name",
    "Resume",
    "SkipBad",
    "Split",
    "console",
    "metrics",
    "out",
]
__all__ += ["print_json"]

CONTEXT = {"allow_extra_args": True, "ignore_unknown_options": True}
"""Of commands whose options are the keys of a configuration, which reads them itself."""

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]

Config = Annotated[Path | None, typer.Option("--config", "-c", help="A flat YAML file of options.")]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on from the last whole checkpoint of output_dir.")
]

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


class Telling(TyperCommand):
    """A command whose help also lists the keys of the configuration, which it takes unparsed."""

    _more: tuple[Any, ...] = ()

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help, every option in its group."""
        self._more = tuple(_configuration_options())
        try:
            super().format_help(ctx, formatter)
        finally:
            self._more = ()

    def get_params(self, ctx: Any) -> list[Any]:
        """The parameters; while help is written, those of the configuration, too."""
        return [*super().get_params(ctx), *self._more]


def _configuration_options() -> list[Any]:
    """Every key of the configuration as an option that is shown and never parsed."""
    from trueline.runs.catalog import align_options

    def told() -> None:
        """Nothing is run."""

    parameters = [
        inspect.Parameter(
            f"key_{row.name}",
            inspect.Parameter.KEYWORD_ONLY,
            default=row.default or None,
            annotation=Annotated[
                str | None,
                typer.Option(f"--{row.name}", help=row.help.replace("[", "\\["),
                             rich_help_panel=group, metavar="VALUE"),
            ],
        )
        for group, rows in align_options().items()
        for row in rows
    ]  # fmt: skip
    told.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    told.__annotations__ = {one.name: one.annotation for one in parameters}
    shown = typer.Typer(add_completion=False)
    shown.command()(told)
    return [one for one in typer.main.get_command(shown).params if one.name != "help"]


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
