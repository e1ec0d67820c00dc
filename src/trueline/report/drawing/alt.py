"""What a figure says, in words, for those who cannot see it."""

from __future__ import annotations

from trueline.report.drawing.numbers import number
from trueline.report.pictures import CurvePanel, Heatmap, Line, RateChart, Scatter, ScatterPanel

NAMED = 12
"""Bars up to which each is told."""


def rates_alt(chart: RateChart) -> str:
    """Every group's rates."""
    parts = [
        f"{group}: " + ", ".join(f"{n} {ms[i] or 'unscored'}" for n, ms in chart.series.items())
        for i, group in enumerate(chart.groups)
    ]
    return f"Dot plot with intervals. {'; '.join(parts)}."


def scatter_alt(block: Scatter, panel: ScatterPanel) -> str:
    """How many points of each class, over which axes."""
    second = sum(map(bool, panel.harmful))
    first = len(panel.x) - second
    return (
        f"Scatter plot, {panel.title}: {first} times {block.classes[0]} and {second} times "
        f"{block.classes[1]}; across {block.axes[0]}, up {block.axes[1]}. {panel.caption}"
    ).strip()


def curves_alt(panel: CurvePanel, x_label: str) -> str:
    """Where each curve begins and ends; of bars each, or where the highest stands."""
    tell = _bars if panel.bars else _ends
    parts = [tell(line) for line in panel.lines if len(line.y)]
    kind = "Bars" if panel.bars else "Curves"
    return f"{kind} over {panel.x_label or x_label}, {panel.title}: {'; '.join(parts)}."


def _ends(line: Line) -> str:
    return f"{line.name} from {number(line.y[0])} to {number(line.y[-1])}".strip()


def _bars(line: Line) -> str:
    places = [x if isinstance(x, str) else number(float(x)) for x in line.x]
    told = [f"{place} {number(y)}" for place, y in zip(places, line.y, strict=True)]
    if len(told) <= NAMED:
        return f"{line.name} {', '.join(told)}".strip()
    highest = max(range(len(told)), key=lambda i: line.y[i])
    where = f"between {places[0]} and {places[-1]}, highest at {told[highest]}"
    return f"{line.name} {where}".strip()


def heatmap_alt(block: Heatmap) -> str:
    """The matrix's size and its two extremes."""
    cells = [
        (value, row, column)
        for row, values in zip(block.rows, block.values, strict=True)
        for column, value in zip(block.columns, values, strict=True)
    ]
    if not cells:
        return f"Heat map, {block.title}: empty."
    (low, *at_low), (high, *at_high) = min(cells), max(cells)
    return (
        f"Heat map, {block.title}: {len(block.rows)} by {len(block.columns)}. Lowest "
        f"{number(low)} at {' and '.join(at_low)}, highest {number(high)} at "
        f"{' and '.join(at_high)}."
    )
