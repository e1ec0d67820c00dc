"""The page of a curation step: its summary, what was measured, what was left out, how to do it
again."""

from __future__ import annotations

from pathlib import Path

from trueline.curation import Curated
from trueline.report import Facts, Report, Section, Table, draw, render_report
from trueline.report import Text as Paragraph
from trueline.report.blocks import Block


def write_page(made: Curated) -> Path:
    """Write the page beside the manifest."""
    name = made.manifest_path.name.removesuffix(".manifest.json")
    return render_report(_page(made), made.manifest_path.with_name(f"{name}.report.html"))


def _page(made: Curated) -> Report:
    finding, facts = made.finding, made.manifest
    measured: list[Block] = [
        Table(
            ["what", "value", "n"],
            [[metric.name, metric, metric.n] for metric in finding.metrics],
            compare="row",
        ),
        *draw(finding).blocks,
    ]
    if finding.advice:
        measured.append(Paragraph(finding.advice, note=True))
    reasons = [
        [reason, drop["count"], ", ".join(drop["places"])]
        for drops in (facts["dropped"], facts["inputs"]["source"]["read"]["dropped"])
        for reason, drop in drops.items()
    ]
    rows: list[Block] = [Table(["what", "count"], [[k, v] for k, v in facts["counts"].items()])]
    if reasons:
        rows.append(Table(["left out because", "rows", "first places"], reasons))
    again: list[Block] = [
        Facts("options", facts["options"], open=True),
        Facts("inputs", facts["inputs"]),
        Facts("outputs", facts["outputs"]),
        Facts("versions and machine", {key: facts[key] for key in ("versions", "machine", "git")}),
    ]
    return Report(
        title=f"trueline data {facts['verb']}",
        subtitle=str(facts["created"]),
        summary=finding.summary,
        sections=[
            Section("Measured", blocks=measured),
            Section("Rows", blocks=rows),
            Section("How it was made", blocks=again),
        ],
    )
