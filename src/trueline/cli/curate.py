"""`trueline data`, the curating half: a command for each registered step."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trueline.cli.common import Json
from trueline.cli.curate_page import present
from trueline.terminal import counting

if TYPE_CHECKING:
    from trueline.curation.jobs.step import Curation

Source = Annotated[str, typer.Argument(help="A file, a directory, or a hub id (org/name).")]
Split = Annotated[str, typer.Option(help="Split of a hub data set or of a directory.")]
Name = Annotated[str | None, typer.Option(help="Configuration of a hub data set.")]
Form = Annotated[str | None, typer.Option(help="The data's form, where its columns do not tell.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave bad rows out and count them.")]
Limit = Annotated[int | None, typer.Option(help="Stop after this many examples.")]
Output = Annotated[
    Path, typer.Argument(help="File to write, its ending says the type; a folder for several.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")]
Html = Annotated[bool, typer.Option(help="Write an HTML report beside the output.")]
To = Annotated[str, typer.Option(help="Form to write: preference, kldo, example, ...")]

READING = {
    "split": (Split, "train"),
    "name": (Name, None),
    "form": (Form, None),
    "skip_bad": (SkipBad, False),
    "limit": (Limit, None),
}
WRITING = {"overwrite": (Overwrite, False), "html": (Html, True), "json": (Json, False)}


def steps() -> dict[str, Any]:
    """A command for each step."""
    from trueline.cli.signature import command
    from trueline.runs.curate import every

    made = {}
    for name, step in every().items():
        reading = READING if step.reads else {k: READING[k] for k in ("split", "skip_bad")}
        before = {"source": (Source, ...)} if step.reads else {}
        after = {"to": (To, step.to), **reading, **WRITING}
        made[name] = command(
            _runner(step), step.make, before, after, between={"output": (Output, ...)}
        )
    return made


def _runner(step: Curation) -> Any:
    def run(*, output: Path, html: bool, json: bool, **given: Any) -> None:
        import inspect

        from trueline.runs.curate import curate

        source = given.pop("source") if step.reads else None
        names = list(inspect.signature(step.make).parameters.values())[1:]
        main = [given.pop(p.name) for p in names if p.kind is not p.KEYWORD_ONLY]
        with counting("opening") as progress:
            made = curate(step.name, source, output, *main, progress=progress, **given)
        present(made, as_json=json, html=html)

    return run
