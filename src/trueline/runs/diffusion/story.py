"""The pages of `trueline diffusion evaluate` and of `trueline demo --diffusion`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trueline.report import (
    Facts,
    Highlight,
    ImageGrid,
    ImageRow,
    RateChart,
    Report,
    Section,
    Table,
    words,
)
from trueline.report.blocks import Cell
from trueline.results import Finding, manifest

if TYPE_CHECKING:
    from trueline.diffusion.evaluation.evaluate import Gallery
    from trueline.diffusion.world_runs import WorldMeasurement

SHOWN = 12
"""Prompts on an evaluation's picture grid."""
PER_CAPTION = 2
"""Pictures of each of the small world's captions on the demo's grid."""


def evaluation_report(
    galleries: Sequence[Gallery],
    prompts: Sequence[str],
    findings: Sequence[Finding],
    scores: Mapping[str, Mapping[str, Sequence[float | None]]],
    facts: Mapping[str, Any],
    command: str,
) -> Report:
    """Win rates with intervals, then the pictures side by side."""
    names = [metric.name for metric in findings[0].metrics if "mean" not in metric.name]
    rows: list[list[Cell]] = [[f.name, *(f[name] for name in names)] for f in findings]
    means: list[list[Cell]] = [
        [finding.name, *(m for m in finding.metrics if m.name.startswith("mean"))]
        for finding in findings
    ]
    wins = RateChart(
        [finding.name for finding in findings],
        {"win rate": [finding["win rate"] for finding in findings]},
        caption="Share of decided prompts on which the aligned model's picture scores higher, with "
        "95% Wilson intervals. Half is no difference.",
    )
    flagged = {g.name: sum(one.flagged for one in g.pictures) for g in galleries}
    blanked = ", ".join(f"{name} {count}" for name, count in flagged.items() if count)
    note = (
        f" The safety checker blanked pictures, which stay unscored: {blanked}." if blanked else ""
    )
    return Report(
        "Text-to-image models compared",
        "\n\n".join(finding.summary for finding in findings),
        [
            Section(
                "Which pictures are better",
                "Every prompt was painted by all models from the same noise." + note,
                [
                    wins,
                    Table(["against the base", *names], rows, compare="column"),
                    Table(["mean scores", "base", "aligned"], means),
                ],
            ),
            Section("Side by side", "", [_side_by_side(galleries, prompts, scores)]),
            Section("Run it again", "", [Facts("Configuration and versions", facts, command)]),
        ],
        subtitle=f"{len(prompts)} prompts; {', '.join(g.name for g in galleries)}",
    )


def _side_by_side(
    galleries: Sequence[Gallery],
    prompts: Sequence[str],
    scores: Mapping[str, Mapping[str, Sequence[float | None]]],
) -> ImageGrid:
    from trueline.diffusion.data.images import png

    def note(gallery: Gallery, k: int) -> str:
        if gallery.pictures[k].flagged:
            return "blanked by the safety checker"
        given = {scorer: found[gallery.name][k] for scorer, found in scores.items()}
        return ", ".join(
            f"{name} {value:.3g}" for name, value in given.items() if value is not None
        )

    rows = [
        ImageRow(
            prompt,
            [_thumbnail(g.pictures[k].image, png) for g in galleries],
            [note(g, k) for g in galleries],
        )
        for k, prompt in enumerate(prompts[:SHOWN])
    ]
    caption = f"The first {len(rows)} of {len(prompts)} prompts, in the order they were given."
    return ImageGrid([g.name for g in galleries], rows, caption=caption)


def _thumbnail(image: Any, png: Any, side: int = 256) -> bytes:
    small = image.copy()
    small.thumbnail((side, side))
    return bytes(png(small))


def world_report(measurements: Sequence[WorldMeasurement], *, seed: int, seconds: float) -> Report:
    """The page that `trueline demo --diffusion` ends in."""
    base, *others = measurements
    named = {m.name: m for m in measurements}
    names = [metric.name for metric in base.finding.metrics]
    rows: list[list[Cell]] = [
        [m.title, *(m.finding[name] for name in names),
         m.finding["bright, change"] if m is not base else None]
        for m in measurements
    ]  # fmt: skip
    highlights = [
        Highlight(
            f"Bright, {named[name].title}",
            named[name].finding["bright"],
            base.finding["bright"],
            "higher",
            f"valid {named[name].finding['valid']}",
        )
        for name in ("sft", "dpo", "dspo")
    ]
    rates = {m.title: [m.finding["bright"], m.finding["valid"]] for m in measurements}
    return Report(
        "Aligned in the small world of pictures",
        world_summary(measurements),
        [
            Section(
                "How bright, and still what was asked for",
                "The pairs prefer the brighter of two pictures of one caption. A picture is bright "
                "from .8 of full brightness on, and valid where an exact judge finds the shape and "
                "the color that were asked for.",
                [
                    RateChart(["bright", "valid"], rates, caption="95% Wilson intervals."),
                    Table(
                        ["model", *names, "bright, change"],
                        rows,
                        compare="column",
                        changes=["bright, change"],
                        caption="The change is on the same captions and noise, with a paired "
                        "interval.",
                    ),
                ],
            ),
            Section("What they paint", "", [_world_grid(measurements)]),
            Section(
                "How to run it again",
                "",
                [
                    Facts(
                        "Versions and machine",
                        manifest(seed=seed, seconds=round(seconds, 1)),
                        f"trueline demo --diffusion --seed {seed}",
                    )
                ],
            ),
        ],
        highlights,
        f"8 x 8 pictures, {len(base.pictures)} painted by each model, seed {seed}; "
        f"{len(others)} runs on the same pairs.",
    )


def world_summary(measurements: Sequence[WorldMeasurement]) -> str:
    """What happened, in words; the controls say what it is due to."""
    named = {m.name: m.finding for m in measurements}
    base, sft, dpo, dspo = (named[name] for name in ("base", "sft", "dpo", "dspo"))
    swapped = named["dspo-swapped"]
    lines = [
        f"The base model paints bright pictures in {words(base['bright'])} of cases. Fine-tuning "
        f"on the chosen pictures makes that {words(sft['bright'])}, DSPO {words(dspo['bright'])}, "
        f"Diffusion-DPO with the SDPO safeguard {words(dpo['bright'])}.",
        f"With the labels swapped DSPO paints bright ones in "
        f"{words(swapped['bright'])}{_follows(base, swapped)} "
        + _pairing(dspo, named["dspo-random"]),
    ]
    return "\n\n".join(lines)


def _follows(base: Finding, swapped: Finding) -> str:
    """Whether the swapped labels darkened the pictures, by the intervals."""
    high, low = swapped["bright"].high, base["bright"].low
    if high is not None and low is not None and high < low:
        return ", below the base: it follows the pictures that are called chosen."
    return ", which the intervals do not tell from the base."


def _pairing(dspo: Finding, random: Finding) -> str:
    """Whether the rejected pictures mattered, by the intervals."""
    own, other = dspo["bright"], random["bright"]
    overlap = (
        None not in (own.low, own.high, other.low, other.high)
        and own.low <= other.high  # type: ignore[operator]
        and other.low <= own.high  # type: ignore[operator]
    )
    text = f"With random losers it reaches {words(other)}"
    if overlap:
        return (
            f"{text}, the same within the intervals: at a beta that is stable the rejected picture "
            "hardly enters, and DSPO is fine-tuning that extrapolates away from the reference."
        )
    return f"{text}: the pairing matters."


def _world_grid(measurements: Sequence[WorldMeasurement]) -> ImageGrid:
    from trueline.diffusion.data.images import png
    from trueline.diffusion.world import CAPTIONS

    rows = [
        ImageRow(
            CAPTIONS[k % len(CAPTIONS)],
            [png(m.pictures[k], at_least=64) for m in measurements],
            [f"{m.readings[k].brightness:.2f}{'' if m.readings[k].valid else ', not valid'}"
             for m in measurements],
        )
        for k in range(min(PER_CAPTION * len(CAPTIONS), len(measurements[0].pictures)))
    ]  # fmt: skip
    return ImageGrid(
        [m.title for m in measurements],
        rows,
        caption="Each row is one caption and one noise; the number is the brightness the judge "
        "reads. The first pictures, not chosen ones.",
        pixelated=True,
    )


def image_paths(folder: Path, name: str) -> Path:
    """Where one model's pictures lie: its label with nothing that could leave the folder."""
    safe = "".join(c if c.isalnum() or c in "-_." else "-" for c in name).strip(".")
    return folder / "images" / (safe or "model")
