"""`trueline compare RUN RUN ...`: what changed, on the same prompts, and how sure that is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from trueline.cli.common import Json, console, metrics, out, print_json
from trueline.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trueline.evaluation.comparison import Comparison
    from trueline.results import Finding


def compare(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[RUN]...", help="Evaluation folders or run directories."),
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(help="Name of the run to compare with; the first unless said.")
    ] = None,
    judge: Annotated[str | None, typer.Option(help="Whose verdicts count.")] = None,
    benchmark: Annotated[
        list[str] | None, typer.Option(help="Only this benchmark; may be repeated.")
    ] = None,
    attack: Annotated[
        list[str] | None, typer.Option(help="Only this attack; may be repeated.")
    ] = None,
    primary: Annotated[
        str, typer.Option(help="Declared measures; their p-values are adjusted together.")
    ] = "asr,over_refusal,utility",
    margin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MEASURE=RATE",
            help="How much worse would not matter; 0.05 for over_refusal and for utility.",
        ),
    ] = None,
    calibration: Annotated[
        list[Path] | None,
        typer.Option(help="What calibrate-judge wrote, for corrected rates; one a model."),
    ] = None,
    resilience: Annotated[
        bool, typer.Option("--resilience", help="Attack success against separation.")
    ] = False,
    points: Annotated[
        Path | None,
        typer.Option(help="For --resilience: a table of model, method, separation, asr."),
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="For --resilience: 'paper' for the published regression.")
    ] = None,
    power: Annotated[
        tuple[float, float] | None,
        typer.Option(metavar="BEFORE AFTER", help="Power for a change of a rate, before any run."),
    ] = None,
    n: Annotated[int | None, typer.Option(help="For --power: prompts.")] = None,
    correlation: Annotated[
        float, typer.Option(help="For --power: of the two models' outcomes over prompts.")
    ] = 0.0,
    level: Annotated[float, typer.Option(help="Coverage of the intervals.")] = 0.95,
    seed: Annotated[int, typer.Option(help="Of the resamples.")] = 0,
    output: Annotated[
        Path, typer.Option(help="Folder for findings, numbers and changed answers.")
    ] = Path("runs/comparison"),
    json: Json = False,
) -> None:
    """Compare runs on the same prompts: rates, differences, what was fixed and what was broken.

    Every run is compared with the baseline. Effects and intervals come first, p-values last and
    adjusted over the declared measures. With --power it says, before any run, how likely a change
    would show; with --resilience, how attack success goes with separation over many models.
    """
    _check_options(runs, resilience, points, preset, power, n, correlation)
    from trueline.runs import compare as verb

    if power is not None:
        _tell_power(verb.power(*power, n, correlation=correlation, level=level), json)
        return

    given = {
        "baseline": baseline, "judge": judge, "benchmarks": benchmark or (),
        "attacks": attack or (), "primary": primary, "margins": _margins(margin or ()),
        "calibration": calibration or (), "level": level, "seed": seed,
    }  # fmt: skip
    if resilience:
        found = verb.resilience(*(runs or ()), points=points, preset=preset, **given)
        found.save(output)
        _tell_resilience(found.findings[0], found.notes, output, json)
        return
    result = verb.compare(*(runs or ()), **given)
    result.save(output)
    assert result.comparison is not None
    if json:
        print_json({**result.comparison.to_dict(), "output": str(output)})
    else:
        _tell(result.comparison, output)


def _check_options(
    runs: Sequence[Path] | None,
    resilience: bool,
    points: Path | None,
    preset: str | None,
    power: tuple[float, float] | None,
    n: int | None,
    correlation: float,
) -> None:
    """An option that would have no effect is an error."""
    if power is not None and (runs or resilience):
        raise UserError("--power looks ahead: give it without runs and without --resilience")
    if power is None and (n is not None or correlation):
        raise UserError("--n and --correlation belong to --power BEFORE AFTER")
    if not resilience and (points is not None or preset is not None):
        raise UserError("--points and --preset belong to --resilience")
    if resilience and (points is None) == (not runs):
        raise UserError("--resilience needs either run directories or --points FILE")
    if power is None and not resilience and len(runs or ()) < 2:
        raise UserError(
            f"comparing needs two runs or more, got {len(runs or ())}; "
            "`trueline compare BASELINE RUN`"
        )


def _margins(given: Sequence[str]) -> dict[str, float]:
    margins = {}
    for text in given:
        name, _, value = text.partition("=")
        try:
            margins[name] = float(value)
        except ValueError:
            raise UserError(
                f"--margin takes MEASURE=RATE, such as utility=0.05, got {text!r}"
            ) from None
    return margins


def _tell(result: Comparison, output: Path) -> None:
    from trueline.runs.compare import judges_sentence, sentence

    out.print(_rates(result))
    out.print(_differences(result))
    for contrast in result.contrasts:
        if contrast.primary:
            told = sentence(contrast, result.baseline, 1 - result.confidence)
            out.print(f"• {told}", markup=False, highlight=False)
    for note in result.notes:
        out.print(f"• {note}", style="yellow", markup=False, highlight=False)
    for found in result.judges:
        out.print(f"• {judges_sentence(found)}", markup=False, highlight=False)
    console.print(
        f"saved in {output}; `trueline report {output}` shows what changed",
        markup=False,
        highlight=False,
    )


def _tell_resilience(found: Finding, notes: Sequence[str], output: Path, json: bool) -> None:
    if json:
        print_json({**found.to_dict(), "notes": list(notes), "output": str(output)})
        return
    out.print(metrics(found))
    for text in (found.summary, found.advice, *notes):
        if text:
            out.print(f"• {text}", markup=False, highlight=False)
    console.print(f"saved in {output}", markup=False, highlight=False)


def _tell_power(found: dict[str, Any], json: bool) -> None:
    """How likely a change shows with so many prompts, and how many show it often enough."""
    if json:
        print_json(found)
        return
    n = found["n"]
    title = f"{found['before']:.1%} against {found['after']:.1%}"
    table = Table(title=title, title_justify="left")
    table.add_column("design")
    designs = found["designs"]
    for target in next(iter(designs.values()))["needed_n"]:
        table.add_column(f"n for {float(target):.0%}", justify="right")
    if n is not None:
        table.add_column(f"power at n = {n}", justify="right")
    for name, design in designs.items():
        cells = [f"{count:,}" for count in design["needed_n"].values()]
        table.add_row(name, *cells, *([] if n is None else [f"{design['power']:.3f}"]))
    out.print(table)


def _rates(result: Comparison) -> Table:
    """Every run's own rates: scopes down, runs across."""
    table = Table(
        title=f"rates [{result.confidence:.0%} interval]", title_justify="left", show_lines=False
    )
    table.add_column("")
    for run in result.runs:
        table.add_column(Text(run), justify="right")
    for scope in dict.fromkeys(level.scope for level in result.levels):
        own = {level.run: level for level in result.levels if level.scope == scope}
        cells = [_cell(own[run].metric) if run in own else "" for run in result.runs]
        name = Text(str(scope), "bold") if scope.whole else Text(f"  {scope.part}")
        table.add_row(name, *cells)
        corrected = [own[run].corrected for run in result.runs if run in own]
        if scope.whole and any(metric is not None for metric in corrected):
            table.add_row(Text("  with the judge's own error"), *map(_cell, corrected))
    table.add_section()
    named = [{m.name: m for m in result.quality[run]} for run in result.runs]
    for share in dict.fromkeys(share for own in named for share in own):
        table.add_row(Text(share, "dim"), *(_cell(own.get(share)) for own in named))
    return table


def _cell(metric: object) -> Text:
    return Text("" if metric is None else str(metric))


def _differences(result: Comparison) -> Table:
    """Each run against the baseline: effect and interval, counts, and the p-values last."""
    from trueline.runs.compare import difference_words, p_words

    table = Table(title=f"change from {result.baseline}", title_justify="left")
    for name in ("run", "", "change [interval]", "fixed", "broken", "pairs", "p", "p, Holm"):
        table.add_column(Text(name), justify="right" if name in ("fixed", "broken", "pairs") else
                         "left")  # fmt: skip
    for contrast in result.contrasts:
        whole = contrast.scope.whole
        counts = [contrast.fixed, contrast.broken, contrast.difference.n]
        ps = [contrast.p_value, contrast.p_holm]
        table.add_row(
            Text(contrast.run if whole else ""),
            Text(str(contrast.scope), "bold") if whole else Text(f"  {contrast.scope.part}"),
            Text(difference_words(contrast.difference), "bold" if whole else ""),
            *(Text("" if count is None else f"{count:,}") for count in counts),
            *(Text("" if p is None else p_words(p).removeprefix("= ")) for p in ps),
        )
    return table
