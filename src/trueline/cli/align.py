"""`trueline align`: from a preference file to an aligned model and what is known of it; and the
same in the words of TRL's scripts, `trueline dpo`, `kto`, `orpo`, `cpo`, `bco` and `sft`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from trueline.cli.common import CONTEXT, Config, Json, Resume, console, print_json
from trueline.errors import UserError
from trueline.trl import SCRIPTS


def align(
    context: typer.Context,
    config: Config = None,
    resume: Resume = False,
    json: Json = False,
) -> None:
    """Train a model with any objective.

    Every key of the configuration is also an option: --loss_type kldo (which has no default),
    --beta 0.2, --learning_rate 5e-6. The command line beats the file.
    """
    from trueline.config import parse_overrides

    _train(config, parse_overrides(context.args), resume=resume, json=json)


def add_scripts(app: typer.Typer) -> None:
    """Register a verb for each of TRL's scripts."""
    for script in SCRIPTS:
        text = f"Train as `trl {script}` would: its options, defaults and reductions."
        app.command(script, context_settings=CONTEXT, help=text, rich_help_panel="TRL's dialect")(
            _script(script)
        )


def _script(script: str) -> Callable[..., None]:
    def run(
        context: typer.Context,
        config: Annotated[
            Path | None, typer.Option("--config", "-c", help="TRL's YAML file; or its name alone.")
        ] = None,
        resume: Resume = False,
        json: Json = False,
    ) -> None:
        from trueline.config import parse_overrides

        rest = list(context.args)
        if rest and not rest[0].startswith("-"):
            if config is not None:
                raise UserError(f"give one file, got {config} and {rest[0]}")
            config = Path(rest.pop(0))
        _train(config, parse_overrides(rest), script=script, resume=resume, json=json)

    return run


def _train(
    config: Path | None,
    overrides: dict[str, Any],
    *,
    script: str | None = None,
    resume: bool,
    json: bool,
) -> None:
    """Read the options, in the words of TRL's ``script`` where one is named, and run them."""
    from trueline.runs.align import read_options, run_alignment

    run = read_options(config, overrides, script=script)
    for note in run.notes:
        console.print(f"note: {note}", style="dim", highlight=False)
    if json:
        run.training.disable_tqdm = True
    resume = resume or str(run.training.resume_from_checkpoint).lower() == "true"
    result = run_alignment(run, resume=resume)
    if json:
        print_json(result)
        return
    from trueline.cli.diagnose import show
    from trueline.results import Finding

    for finding in result["findings"]:
        show(Finding.from_dict(finding))
