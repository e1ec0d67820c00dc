"""What a curation verb shows when it is done: tables on the terminal, one HTML file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from trueline.cli.common import console, out, print_json

if TYPE_CHECKING:
    from trueline.curation import Curated
    from trueline.report import Report
    from trueline.report.blocks import Block

SHOWN = 2  # places of each reason on the terminal; the report and the manifest have more


def present(made: Curated | None, *, as_json: bool, html: bool) -> None:
    """Show what was made; other ranks than 0 made nothing and say nothing."""
    if made is None:
        return
    page = made.manifest_path.with_name(
        made.manifest_path.name.removesuffix(".manifest.json") + ".report.html"
    )
    if html:
        from trueline.report import render_report

        render_report(report(made), page)
    if as_json:
        print_json(
            {
                "outputs": [str(path) for path in made.outputs],
                "manifest": str(made.manifest_path),
                "report": str(page) if html else None,
                **{key: made.manifest[key] for key in ("counts", "dropped", "finding")},
            }
        )
        return
    _show(made)
    if html:
        console.print(Text(f"report  {page}"), soft_wrap=True)


def _show(made: Curated) -> None:
    finding = made.finding
    out.print(Text(finding.summary, "bold"))
    if finding.metrics:
        table = Table("what", "value", "n", title="measured")
        for metric in finding.metrics:
            count = "" if metric.n is None else f"{metric.n:,}"
            table.add_row(Text(metric.name), str(metric), count)
        out.print(table)
    _counts("written", made.manifest["counts"])
    dropped = made.manifest["dropped"]
    read = made.manifest["inputs"]["source"]["read"]["dropped"]
    for title, drops in (("left out", dropped), ("bad rows", read)):
        if drops:
            table = Table("because", "rows", "first places", title=title)
            for reason, drop in drops.items():
                places = ", ".join(drop["places"][:SHOWN])
                table.add_row(Text(reason), f"{drop['count']:,}", Text(places))
            out.print(table)
    if finding.advice:
        out.print(Text(f"• {finding.advice}", "yellow"))
    for path in (*made.outputs, made.manifest_path):
        console.print(Text(f"wrote  {path}"), soft_wrap=True)  # a path stays one word


def _counts(title: str, counts: dict[str, Any]) -> None:
    table = Table("what", "count", title=title)
    for name, count in counts.items():
        table.add_row(Text(name), f"{count:,}")
    out.print(table)


def report(made: Curated) -> Report:
    """The page: the summary, what was measured, what was left out, how to do it again."""
    from trueline.report import Facts, Report, Section, Table, draw
    from trueline.report import Text as Paragraph

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
