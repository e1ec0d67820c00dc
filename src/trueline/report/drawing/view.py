"""From blocks to what the template shows: formatted numbers, interval bars, alternative texts."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import singledispatchmethod
from typing import Any

from trueline.report.blocks import Block, Facts, Highlights, Samples, Table, Text, Verdicts
from trueline.report.drawing import curves, figures
from trueline.report.drawing.alt import curves_alt, heatmap_alt, rates_alt, scatter_alt
from trueline.report.drawing.numbers import NEUTRAL, View, mark_view
from trueline.report.drawing.tables import highlight_view, table_view
from trueline.report.pictures import Curves, Heatmap, ImageGrid, RateChart, Scatter
from trueline.report.rows import Rows


def paragraphs(text: str) -> list[str]:
    """The text's paragraphs, which blank lines separate."""
    return [part.strip() for part in text.split("\n\n") if part.strip()]


@dataclass
class Views:
    """Builds the views of a page's blocks, and collects its figures by id.

    ``models`` are named in the order of their marks; what a block compares beside them is added.
    """

    figures: dict[str, Any] = field(default_factory=dict)
    models: list[str] = field(default_factory=list)

    def know(self, blocks: Iterable[Block]) -> None:
        """Give a mark to every model that a block names and the page does not know yet."""
        for block in blocks:
            names: Iterable[str] = ()
            if isinstance(block, RateChart):
                names = block.series
            elif isinstance(block, ImageGrid):
                names = block.columns
            elif isinstance(block, Samples):
                names = [a.model for item in block.items for a in item.answers]
            elif isinstance(block, Rows):
                names = block.judged
            self.models += [n for n in dict.fromkeys(names) if n not in self.models]

    def place(self, name: str) -> int:
        """A model's place, which gives it its mark; NEUTRAL for what is none."""
        return self.models.index(name) if name in self.models else NEUTRAL

    def named(self, name: str) -> View:
        """A model's name with its mark."""
        return {"name": name, "mark": mark_view(self.place(name))}

    def figure(self, figure: Any) -> str:
        """Keep a plotly figure for the page's script; returns the id of its place."""
        key = f"figure-{len(self.figures) + 1}"
        self.figures[key] = json.loads(figure.to_json())
        return key

    def view(self, block: Block) -> View:
        """The template's data for a block: its title and caption, where it may have them, and its
        own; ``kind`` names the template's macro."""
        headed = {key: getattr(block, key) for key in ("title", "caption") if hasattr(block, key)}
        return {**headed, **self._own(block)}

    @singledispatchmethod
    def _own(self, block: Block) -> View:
        raise TypeError(f"not a block of a report: {type(block).__name__}")

    @_own.register
    def _(self, block: Text) -> View:
        return {"kind": "text", "paragraphs": paragraphs(block.text), "note": block.note}

    @_own.register
    def _(self, block: Highlights) -> View:
        return {
            "kind": "highlights",
            "items": [highlight_view(item, self.place) for item in block.items],
        }

    @_own.register
    def _(self, block: Table) -> View:
        return table_view(block, self.place)

    @_own.register
    def _(self, block: RateChart) -> View:
        rows = [
            [group, *(metrics[i] for metrics in block.series.values())]
            for i, group in enumerate(block.groups)
        ]
        numbers = table_view(Table(("", *block.series), rows), self.place)
        key = self.figure(figures.rate_figure(block, [self.place(name) for name in block.series]))
        return {
            "kind": "rates",
            "legend": [self.named(name) for name in block.series],
            "plot": {"id": key, "alt": rates_alt(block)},
            "numbers": numbers,
        }

    @_own.register
    def _(self, block: Scatter) -> View:
        ranges = figures.scatter_ranges(block)
        panels = [
            {
                "title": panel.title,
                "caption": panel.caption,
                "id": self.figure(figures.scatter_figure(block, panel, own)),
                "alt": scatter_alt(block, panel),
            }
            for panel, own in zip(block.panels, ranges, strict=True)
        ]
        shared = len(panels) > 1 and len(set(ranges)) == 1
        return {
            "kind": "scatter",
            "panels": panels,
            "classes": list(block.classes),
            "outlines": block.outlines,
            "scale_note": _scale_note(len(panels), shared),
        }

    @_own.register
    def _(self, block: Curves) -> View:
        panels = [
            {
                "title": panel.title,
                "legend": [
                    {"name": line.name, "tone": tone, "dashed": line.dashed}
                    for line, tone in zip(panel.lines, curves.curve_tones(panel), strict=True)
                ],
                "id": self.figure(curves.curve_figure(panel, block.x_label)),
                "alt": curves_alt(panel, block.x_label),
            }
            for panel in block.panels
        ]
        return {"kind": "curves", "panels": panels}

    @_own.register
    def _(self, block: Heatmap) -> View:
        plot = {"id": self.figure(curves.heatmap_figure(block)), "alt": heatmap_alt(block)}
        return {"kind": "heatmap", "plot": plot}

    @_own.register
    def _(self, block: Verdicts) -> View:
        return {"kind": "verdicts", "caption": "", "items": block.items}

    @_own.register
    def _(self, block: Samples) -> View:
        return {
            "kind": "samples",
            "any_sensitive": any(item.sensitive for item in block.items),
            "items": [
                {
                    "prompt": item.prompt,
                    "label": item.label,
                    "sensitive": item.sensitive,
                    "answers": [
                        {**self.named(a.model), "text": a.text, "verdict": a.verdict, "bad": a.bad}
                        for a in item.answers
                    ],
                }
                for item in block.items
            ],
        }  # fmt: skip

    @_own.register
    def _(self, block: ImageGrid) -> View:
        return {
            "kind": "images",
            "pixelated": block.pixelated,
            "columns": [self.named(name) for name in block.columns],
            "rows": [
                {
                    "prompt": row.prompt,
                    "cells": [
                        {"source": None if image is None else _data_uri(image), "note": note,
                         "alt": f"{row.prompt}, by {column}"}
                        for image, note, column in zip(
                            row.images, row.notes or [""] * len(row.images), block.columns,
                            strict=True,
                        )
                    ],
                }
                for row in block.rows
            ],
        }  # fmt: skip

    @_own.register
    def _(self, block: Rows) -> View:
        return {"kind": "rows", "models": [self.named(name) for name in block.judged]}

    @_own.register
    def _(self, block: Facts) -> View:
        return {
            "kind": "facts",
            "items": list(_flat(block.items)),
            "command": block.command,
            "open": block.open,
        }


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _scale_note(count: int, shared: bool) -> str:
    if count < 2:
        return ""
    if shared:
        return (
            "Both planes are drawn to one scale." if count == 2 else "All planes share one scale."
        )
    return "Each plane has its own scale: compare shapes and overlap, not distances on the page."


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
