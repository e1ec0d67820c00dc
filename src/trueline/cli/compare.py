"""`trueline compare RUN RUN ...`: what changed, on the same prompts, and how sure that is."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trueline.cli.common import Json, console, print_json
from trueline.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trueline.evaluation.comparison import Comparison, Settings
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
        Path | None, typer.Option(help="What calibrate-judge wrote, for corrected rates.")
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
    from trueline.stats.resampling import check_level

    check_level(level)
    _check_options(runs, resilience, points, preset, power, n, correlation)
    if power is not None:
        from trueline.cli.compare_power import show_power

        show_power(power, n, correlation, level, json)
        return
    from trueline.evaluation.comparison import Settings

    settings = Settings(
        baseline=baseline,
        judge=judge,
        benchmarks=benchmark or (),
        attacks=attack or (),
        primary=[name.strip() for name in primary.split(",") if name.strip()],
        margins=_margins(margin or ()),
        **({} if calibration is None else _calibration(calibration)),
        level=level,
        seed=seed,
    )
    if resilience:
        found, notes = _resilience(runs or [], points, preset, settings)
        _save(output, [found])
        _tell_resilience(found, notes, output, json)
        return
    from trueline.evaluation.comparison import compare_runs, findings_of, load_judged_runs

    result = compare_runs(load_judged_runs(runs or []), settings)
    _save(output, findings_of(result), result)
    if json:
        print_json({**result.to_dict(), "output": str(output)})
    else:
        _tell(result, output)


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
    from trueline.evaluation.comparison.values import MARGINS

    margins = dict(MARGINS)
    for text in given:
        name, _, value = text.partition("=")
        try:
            margins[name.replace("-", "_")] = float(value)
        except ValueError:
            raise UserError(
                f"--margin takes MEASURE=RATE, such as utility=0.05, got {text!r}"
            ) from None
    return margins


def _calibration(path: Path) -> dict[str, Any]:
    """The counts that calibrate-judge wrote, and of which measure and judge they are."""
    import json

    from trueline.stats import Calibration

    if not path.is_file():
        raise UserError(f"{path} is no file; give what `trueline calibrate-judge` wrote")
    try:
        value = json.loads(path.read_text("utf-8"))
        counts = Calibration.from_dict(value)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    return {
        "calibration": counts,
        "calibrates": (value.get("measure", "asr"), value.get("judge")),
        "calibrated_on": value.get("model"),
    }


def _resilience(
    runs: Sequence[Path], points: Path | None, preset: str | None, settings: Settings
) -> tuple[Finding, list[str]]:
    from trueline.evaluation.comparison import (
        compare_runs,
        load_judged_runs,
        points_from_runs,
        read_points,
    )
    from trueline.evaluation.resilience import resilience

    notes: list[str] = []
    if points is not None:
        models = read_points(points)
    else:
        judged = load_judged_runs(runs)
        compared = compare_runs(judged, settings)
        asr = {
            level.run: level.metric.value
            for level in compared.levels
            if level.scope.measure == "asr" and level.scope.whole
        }
        collected = points_from_runs(judged, asr)
        models, notes = collected.points, collected.notes
    found = resilience(models, preset=preset, seed=settings.seed, level=settings.level)  # type: ignore[arg-type]
    return found, notes


def _save(output: Path, findings: Sequence[Finding], result: Comparison | None = None) -> None:
    """A folder that `trueline report` reads like a run."""
    from trueline.files import write_json
    from trueline.results import manifest, save_findings

    try:
        output.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"--output {output} is not a folder and cannot become one") from None
    save_findings(output, findings)
    write_json(output / "manifest.json", manifest(command=shlex.join(["trueline", *sys.argv[1:]])))
    if result is not None:
        import json

        from trueline.evaluation.comparison import samples_of

        write_json(output / "comparison.json", result.to_dict())
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in samples_of(result))
        (output / "samples.jsonl").write_text("".join(lines), "utf-8", newline="\n")


def _tell(result: Comparison, output: Path) -> None:
    from trueline.cli.compare_tables import differences, rates
    from trueline.evaluation.comparison import judges_sentence, sentence

    console.print(rates(result))
    console.print(differences(result))
    for contrast in result.contrasts:
        if contrast.primary:
            told = sentence(contrast, result.baseline, 1 - result.confidence)
            console.print(f"• {told}", markup=False, highlight=False)
    for note in result.notes:
        console.print(f"• {note}", style="yellow", markup=False, highlight=False)
    for found in result.judges:
        console.print(f"• {judges_sentence(found)}", markup=False, highlight=False)
    console.print(
        f"saved in {output}; `trueline report {output}` shows what changed",
        markup=False,
        highlight=False,
    )


def _tell_resilience(found: Finding, notes: Sequence[str], output: Path, json: bool) -> None:
    if json:
        print_json({**found.to_dict(), "notes": list(notes), "output": str(output)})
        return
    from trueline.cli.compare_tables import metrics

    console.print(metrics(found))
    for text in (found.summary, found.advice, *notes):
        if text:
            console.print(f"• {text}", markup=False, highlight=False)
    console.print(f"saved in {output}", markup=False, highlight=False)
