"""`trueline align`: from a preference file to an aligned model and what is known of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trueline.cli.common import Json, console, print_json

CONTEXT = {"allow_extra_args": True, "ignore_unknown_options": True}


def align(
    context: typer.Context,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="A flat YAML file of options.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last whole checkpoint of output_dir.")
    ] = False,
    json: Json = False,
) -> None:
    """Train a model with any objective.

    Every key of the configuration is also an option: --beta 0.2, --loss_type kldo,
    --learning_rate 5e-6. The command line beats the file. Keys are TRL's where TRL has them.
    """
    from trueline.config import load_run_config, parse_overrides
    from trueline.objectives import OBJECTIVES
    from trueline.runs.align import run_alignment

    options = {name for spec in OBJECTIVES.values() for name in spec.options}
    overrides = parse_overrides(context.args)
    run = load_run_config(config, overrides, options | _own_options(config, overrides))
    for note in run.notes:
        console.print(f"note: {note}", style="dim", highlight=False)
    if json:
        run.training.disable_tqdm = True
    result = run_alignment(run, resume=resume)
    if json:
        print_json(result)


def _own_options(config: Path | None, overrides: dict[str, str]) -> set[str]:
    """Options of objectives that are the user's own, ``my_package.losses:mine``."""
    import yaml

    from trueline.objectives import find

    given = yaml.safe_load(config.read_text("utf-8")) if config and config.is_file() else None
    names = overrides.get("loss_type") or (given or {}).get("loss_type") or []
    listed = names if isinstance(names, list) else [names]
    return {key for name in listed if ":" in str(name) for key in find(str(name)).options}
