"""From blocks to what the template shows: formatted numbers, interval bars, alternative texts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import singledispatchmethod
from typing import Any

from trueline.report import figures
from trueline.report.blocks import (
    Block,
    Cell,
    CurvePanel,
    Curves,
    Facts,
    Highlight,
    Highlights,
    Line,
    RateChart,
    Samples,
    Scatter,
    ScatterPanel,
    Table,
    Text,
)
from trueline.report.numbers import (
    NEUTRAL,
    View,
    change,
    common_scale,
    metric_view,
    number,
    tone_name,
)
from trueline.results import Metric


def paragraphs(text: str) -> list[str]:
    """The text's paragraphs, which blank lines separate."""
    return [part.strip() for part in text.split("\n\n") if part.strip()]


@dataclass
class Views:
    """Builds the views of a page's blocks, and collects its figures by id."""

    figures: dict[str, Any] = field(default_factory=dict)

    def figure(self, figure: Any) -> str:
        """Keep a plotly figure for the page's script; returns the id of its place."""
        key = f"figure-{len(self.figures) + 1}"
        self.figures[key] = json.loads(figure.to_json())
        return key

    @singledispatchmethod
    def view(self, block: Block) -> View:
        """The template's data for a block; ``kind`` names the template's macro."""
        raise TypeError(f"not a block of a report: {type(block).__name__}")

    @view.register
    def _(self, block: Text) -> View:
        return {"kind": "text", "paragraphs": paragraphs(block.text), "note": block.note}

    @view.register
    def _(self, block: Highlights) -> View:
        return {"kind": "highlights", "items": [highlight_view(item) for item in block.items]}

    @view.register
    def _(self, block: Table) -> View:
        return table_view(block)

    @view.register
    def _(self, block: RateChart) -> View:
        rows = [
            [group, *(metrics[i] for metrics in block.series.values())]
            for i, group in enumerate(block.groups)
        ]
        numbers = table_view(Table(("", *block.series), rows))
        key = self.figure(figures.rate_figure(block))
        return {
            "kind": "rates",
            "title": block.title,
            "caption": block.caption,
            "legend": [{"name": name, "tone": tone_name(i)} for i, name in enumerate(block.series)],
            "plot": {"id": key, "alt": _rates_alt(block)},
            "numbers": numbers,
        }

    @view.register
    def _(self, block: Scatter) -> View:
        ranges = figures.scatter_ranges(block)
        panels = [
            {
                "title": panel.title,
                "caption": panel.caption,
                "id": self.figure(figures.scatter_figure(panel, own)),
                "alt": _scatter_alt(panel),
            }
            for panel, own in zip(block.panels, ranges, strict=True)
        ]
        shared = len(panels) > 1 and len(set(ranges)) == 1
        return {
            "kind": "scatter",
            "title": block.title,
            "caption": block.caption,
            "panels": panels,
            "scale_note": _scale_note(len(panels), shared),
        }

    @view.register
    def _(self, block: Curves) -> View:
        panels = [
            {
                "title": panel.title,
                "legend": [_legend(line, i) for i, line in enumerate(panel.lines)],
                "id": self.figure(figures.curve_figure(panel, block.x_label)),
                "alt": _curves_alt(panel, block.x_label),
            }
            for panel in block.panels
        ]
        return {
            "kind": "curves", "title": block.title, "caption": block.caption, "panels": panels,
        }  # fmt: skip

    @view.register
    def _(self, block: Samples) -> View:
        names = list(dict.fromkeys(a.model for item in block.items for a in item.answers))
        return {
            "kind": "samples",
            "title": block.title,
            "caption": block.caption,
            "any_sensitive": any(item.sensitive for item in block.items),
            "items": [
                {
                    "prompt": item.prompt,
                    "label": item.label,
                    "sensitive": item.sensitive,
                    "answers": [
                        {"tone": tone_name(names.index(a.model)), "model": a.model, "text": a.text,
                         "verdict": a.verdict, "bad": a.bad}
                        for a in item.answers
                    ],
                }
                for item in block.items
            ],
        }  # fmt: skip

    @view.register
    def _(self, block: Facts) -> View:
        return {
            "kind": "facts",
            "title": block.title,
            "items": list(_flat(block.items)),
            "command": block.command,
            "open": block.open,
        }


def highlight_view(item: Highlight) -> View:
    """A highlighted number with what it was before, both on one scale."""
    both = [item.value, *([item.before] if item.before else [])]
    scale = common_scale(both)
    verdict = ""
    if item.before and item.before.value is not None and item.value.value is not None:
        moved = item.value.value - item.before.value
        verdict = "unchanged" if moved == 0 else ("up from" if moved > 0 else "down from")
        if item.better and moved:
            good = (moved < 0) == (item.better == "lower")
            verdict += "|good" if good else "|bad"
    words, _, mark = verdict.partition("|")
    return {
        "label": item.label,
        "note": item.note,
        "value": metric_view(item.value, scale, 1 if item.before else 0),
        "before": metric_view(item.before, scale, 0) if item.before else None,
        "change": words,
        "mark": mark,
    }


def table_view(table: Table) -> View:
    """Cells with their interval bars; metrics that may be compared share a scale."""
    signed = [name in table.changes for name in table.columns]
    by_row = table.compare == "row"

    def scale(i: int, j: int) -> tuple[float, float] | None:
        if signed[j]:
            return _around_zero(table.rows[i][j])
        if not by_row:
            return _scale_of([row[j] for row in table.rows])
        return _scale_of([c for c, sign in zip(table.rows[i], signed, strict=True) if not sign])

    rows = [
        [_cell(cell, scale(i, j), j - 1 if by_row else i, signed[j]) for j, cell in enumerate(row)]
        for i, row in enumerate(table.rows)
    ]
    return {
        "kind": "table",
        "title": table.title,
        "caption": table.caption,
        "columns": list(table.columns),
        "rows": rows,
    }


def _scale_of(cells: Sequence[Cell]) -> tuple[float, float] | None:
    return common_scale([cell for cell in cells if isinstance(cell, Metric)])


def _around_zero(cell: Cell) -> tuple[float, float] | None:
    """A difference's scale: -1 to 1 for rates, else as far as the interval reaches."""
    if not isinstance(cell, Metric) or cell.value is None:
        return None
    reach = max(abs(end) for end in (cell.value, cell.low, cell.high) if end is not None)
    reach = 1.0 if cell.unit == "rate" else reach
    return (-reach, reach) if reach else None


def _cell(cell: Cell, scale: tuple[float, float] | None, tone: int, signed: bool) -> View:
    if isinstance(cell, Metric):
        if signed:
            return metric_view(cell, scale, NEUTRAL, change)
        return metric_view(cell, scale, max(tone, 0))
    if cell is None:
        return {"kind": "word", "value": "–"}
    if isinstance(cell, str):
        return {"kind": "word", "value": cell}
    return {"kind": "number", "value": number(cell)}


def _legend(line: Line, index: int) -> View:
    tones = {"good": "good", "bad": "bad", "main": "m1"}
    tone = tones.get(line.tone, tone_name(index + 2))
    return {"name": line.name, "tone": tone, "dashed": line.dashed}


def _scale_note(count: int, shared: bool) -> str:
    if count < 2:
        return ""
    if shared:
        return (
            "Both planes are drawn to one scale." if count == 2 else "All planes share one scale."
        )
    return "Each plane has its own scale: compare shapes and overlap, not distances on the page."


def _rates_alt(chart: RateChart) -> str:
    parts = [
        f"{group}: " + ", ".join(f"{n} {ms[i] or 'unscored'}" for n, ms in chart.series.items())
        for i, group in enumerate(chart.groups)
    ]
    return f"Dot plot with intervals. {'; '.join(parts)}."


def _scatter_alt(panel: ScatterPanel) -> str:
    bad = sum(map(bool, panel.harmful))
    return (
        f"Scatter plot, {panel.title}: {bad} harmful and {len(panel.x) - bad} safe prompts in two "
        f"principal components. {panel.caption}"
    )


def _curves_alt(panel: CurvePanel, x_label: str) -> str:
    parts = [
        f"{line.name} from {number(line.y[0])} to {number(line.y[-1])}"
        for line in panel.lines
        if len(line.y)
    ]
    return f"Curves over {x_label}, {panel.title}: {'; '.join(parts)}."


def _flat(items: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in items.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", _plain(value)


def _plain(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple) and all(isinstance(v, str | int | float) for v in value):
        return ", ".join(map(str, value))
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
