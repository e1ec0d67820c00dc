"""One self-contained HTML page that says what happened, and shows it."""

from trueline.report.blocks import (
    Answer,
    CurvePanel,
    Curves,
    Facts,
    Highlight,
    Highlights,
    Line,
    RateChart,
    Report,
    Sample,
    Samples,
    Scatter,
    ScatterPanel,
    Section,
    Table,
    Text,
)
from trueline.report.html import render_html, render_report
from trueline.report.load import load_run
from trueline.report.numbers import words
from trueline.report.run import report_from_run, report_from_runs

__all__ = [
    "Answer",
    "CurvePanel",
    "Curves",
    "Facts",
    "Highlight",
    "Highlights",
    "Line",
    "RateChart",
    "Report",
    "Sample",
    "Samples",
    "Scatter",
    "ScatterPanel",
    "Section",
    "Table",
    "Text",
    "load_run",
    "render_html",
    "render_report",
    "report_from_run",
    "report_from_runs",
    "words",
]
