"""The application: one module a verb, and the conventions they share.

Progress and tables go to stderr; ``--json`` prints one JSON document on stdout; bad input is one
line on stderr and exit code 2. Verb modules import nothing heavy at the top, so that
``trueline --help`` answers at once.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from trueline.cli import (
    bound,
    compare,
    curate,
    data,
    demo,
    diagnose,
    diffusion,
    evaluate,
    inspect_export,
    objectives,
    report,
    reproduce,
    train,
)
from trueline.errors import UserError

app = typer.Typer(
    name="trueline",
    help="Align language models to be safe and preferred, and show whether and why it worked.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(demo.demo)
app.command(context_settings=train.CONTEXT)(train.align)
app.command()(objectives.objectives)
app.add_typer(data.app, name="data")
curate.add_to(data.app)
app.add_typer(diagnose.app, name="diagnose")
app.command()(evaluate.evaluate)
app.command()(evaluate.calibrate_judge)
app.command()(compare.compare)
app.command()(report.report)
app.command()(reproduce.reproduce)
app.command()(bound.bound)
app.command()(inspect_export.inspect_export)
app.add_typer(diffusion.app, name="diffusion")


def _version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        print(version("trueline"))
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Align language models to be safe and preferred, and show whether and why it worked."""


def main() -> None:
    """The console entry point: bad input becomes one clear line and exit code 2."""
    try:
        app()
    except (UserError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
