"""Tables, highlighted numbers and decisions as the template shows them, on common scales."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from trueline.report.blocks import Cell, Decision, Highlight, Shown, Table
from trueline.report.drawing.numbers import (
    NEUTRAL,
    View,
    change,
    common_scale,
    mark_view,
    metric_view,
    number,
    span,
)
from trueline.report.rows import link
from trueline.results import Metric

Places: TypeAlias = Callable[[str], int]
"""From a name to the place of the model of that name, which gives it its mark; NEUTRAL for what is
no model."""


def decision_view(decision: Decision, place: Places) -> View:
    """A model's verdict, with its prices on one scale and their bounds."""
    mark = place(decision.model)
    cells = [
        {
            **metric_view(price.value, (0.0, 1.0), mark, bound=price.bound),
            "name": price.name,
            "href": link(price.rows),
            "change": "" if price.change is None else _moved(price.change),
        }
        for price in decision.prices
    ]
    names = {"ship": "good", "do not ship": "bad", "undecided": "open"}
    return {
        "model": decision.model,
        "mark": mark_view(mark),
        "verdict": decision.verdict,
        "tone": names[decision.verdict],
        "reason": decision.reason,
        "role": decision.role,
        "cells": cells,
    }


def _moved(metric: Metric) -> str:
    reach = span(metric, change)
    return change(metric.value or 0.0, metric.unit) + (f" ({reach})" if reach else "")


def highlight_view(item: Highlight, place: Places) -> View:
    """A highlighted number with what it was before, both on one scale."""
    both = [item.value, *([item.before] if item.before else [])]
    scale = common_scale(both)
    verdict = ""
    if item.before and item.before.value is not None and item.value.value is not None:
        moved = item.value.value - item.before.value
        verdict = "unchanged" if moved == 0 else ("up from" if moved > 0 else "down from")
        if moved and not item.sure:
            verdict = "no difference shown from"
        elif item.better and moved:
            good = (moved < 0) == (item.better == "lower")
            verdict += "|good" if good else "|bad"
    words, _, mark = verdict.partition("|")
    before = metric_view(item.before, scale, place(item.before_model)) if item.before else None
    return {
        "label": item.label,
        "note": item.note,
        "value": metric_view(item.value, scale, place(item.model)),
        "before": before,
        "change": words,
        "mark": mark,
    }


def table_view(table: Table, place: Places = lambda name: NEUTRAL) -> View:
    """Cells with their interval bars; metrics that may be compared share a scale."""
    signed = [name in table.changes for name in table.columns]
    by_row = table.compare == "row"

    def scale(i: int, j: int) -> tuple[float, float] | None:
        if signed[j]:
            return _around_zero(table.rows[i][j])
        if not by_row:
            return _scale_of([row[j] for row in table.rows])
        return _scale_of([c for c, sign in zip(table.rows[i], signed, strict=True) if not sign])

    def tone(i: int, j: int) -> int:
        """The mark of the model that the column's head names, else the row's."""
        own = [place(table.columns[j]), place(str(table.rows[i][0]))]
        return next((index for index in own if index != NEUTRAL), NEUTRAL)

    rows = [
        [_cell(cell, scale(i, j), tone(i, j), signed[j], place) for j, cell in enumerate(row)]
        for i, row in enumerate(table.rows)
    ]
    heads = [{"name": name, "mark": _mark(place(name))} for name in table.columns]
    for row, view in zip(table.rows, rows, strict=True):
        for cell in view:
            cell.setdefault("href", "")
        view[0]["mark"] = _mark(place(str(row[0])))
    return {
        "kind": "table",
        "title": table.title,
        "caption": table.caption,
        "columns": heads,
        "rows": rows,
        "folded": table.folded,
    }


def _mark(index: int) -> View | None:
    return None if index == NEUTRAL else mark_view(index)


def _scale_of(cells: Sequence[Cell]) -> tuple[float, float] | None:
    return common_scale([plain for cell in cells if isinstance(plain := _plain(cell), Metric)])


def _plain(cell: Cell) -> str | int | float | Metric | None:
    return cell.value if isinstance(cell, Shown) else cell


def _around_zero(cell: Cell) -> tuple[float, float] | None:
    """A difference's scale: -1 to 1 for rates, else as far as the interval reaches."""
    cell = _plain(cell)
    if not isinstance(cell, Metric) or cell.value is None:
        return None
    reach = max(abs(end) for end in (cell.value, cell.low, cell.high) if end is not None)
    reach = 1.0 if cell.unit == "rate" else reach
    return (-reach, reach) if reach else None


def _cell(
    cell: Cell, scale: tuple[float, float] | None, tone: int, signed: bool, place: Places
) -> View:
    if isinstance(cell, Shown):
        own = place(cell.model)
        inside = _cell(cell.value, scale, tone if own == NEUTRAL else own, signed, place)
        return {**inside, "href": link(cell.rows)}
    if isinstance(cell, Metric):
        return (
            metric_view(cell, scale, NEUTRAL, change) if signed else metric_view(cell, scale, tone)
        )
    if cell is None:
        return {"kind": "word", "value": "–"}
    if isinstance(cell, str):
        return {"kind": "word", "value": cell}
    return {"kind": "number", "value": number(cell)}
