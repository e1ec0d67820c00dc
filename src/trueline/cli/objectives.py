"""`trueline objectives [NAME]`: what can be minimized, and where it comes from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from trueline.cli.common import Json, console, out, print_json

if TYPE_CHECKING:
    from trueline.objectives import Objective


def objectives(
    name: Annotated[
        str | None,
        typer.Argument(help="One objective: its name, an alias, or my_package.losses:mine."),
    ] = None,
    json: Json = False,
) -> None:
    """List the objectives, or show one with its equation, options, coupling and source."""
    from trueline.runs.catalog import catalog, describe, find

    if name is not None:
        spec = find(name)
        print_json(describe(spec)) if json else _show(spec)
    elif json:
        print_json([describe(spec) for spec in catalog()])
    else:
        _list(catalog())


def _list(specs: list[Objective]) -> None:
    from rich.table import Table

    from trueline.runs.catalog import HEADINGS, coupling, group

    for key, heading in HEADINGS.items():
        table = Table(title=heading, title_justify="left", box=None, padding=(0, 2, 0, 0))
        for column in ("objective", "equation", "coupling"):
            table.add_column(column, no_wrap=column == "objective")
        for spec in specs:
            if group(spec) == key:
                table.add_row(
                    spec.name, spec.equation, "" if coupling(spec) == "none" else coupling(spec)
                )
        out.print(table, markup=False)
        out.print()
    console.print("trueline objectives NAME shows one with its options.", style="dim")


def _show(spec: Objective) -> None:
    from rich.table import Table

    from trueline.runs.catalog import LAYOUTS, coupling, help_of

    out.print(f"{spec.name}: {spec.summary}\n", markup=False, highlight=False)
    facts = {
        "L =": spec.equation,
        "reads": LAYOUTS[spec.layout] + (" and a reference" if spec.reference else ""),
        "needs": ", ".join(spec.requires),
        "estimates": spec.estimates,
        "coupling": coupling(spec),
        "source": spec.source,
        "also called": ", ".join(spec.aliases),
    }
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for key, text in facts.items():
        if text:
            table.add_row(key, text)
    out.print(table, markup=False)
    if not spec.declared:
        return
    options = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("option", "default", "accepts", ""):
        options.add_column(column)
    for key, option in spec.declared.items():
        default = "none" if option.default is None else str(option.default)
        options.add_row(key, default, option.wording, help_of(spec, key))
    out.print()
    out.print(options, markup=False)
