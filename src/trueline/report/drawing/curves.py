"""Figures of curves, bars and matrices: plain data in, a plotly figure out."""

from __future__ import annotations

from typing import Any

from trueline.report.drawing.numbers import tone_name
from trueline.report.drawing.style import (
    BAD,
    GOOD,
    GROUND,
    INK,
    MODELS,
    safe_text,
    styled,
)
from trueline.report.pictures import CurvePanel, Heatmap, Line

FEW = 12
"""Points of a curve up to which each is marked."""

LONGEST = 18
"""Characters of a name beside a matrix."""


def curve_tones(panel: CurvePanel) -> list[str]:
    """Each curve's color by its name in the palette: by its meaning; the others in turn, training
    and evaluation of one thing alike."""
    names = [line.name.removesuffix(", evaluation") for line in panel.lines]
    lines = list(zip(names, panel.lines, strict=True))
    others = list(dict.fromkeys(name for name, line in lines if line.tone == "other"))
    tones = {"good": "good", "bad": "bad", "main": "ink"}
    return [tones.get(line.tone) or tone_name(others.index(name) + 2) for name, line in lines]


def curve_figure(panel: CurvePanel, x_label: str = "step") -> Any:
    """Curves or bars over one axis, read together at one place by hovering."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for line, tone in zip(panel.lines, curve_tones(panel), strict=True):
        color = {"good": GOOD, "bad": BAD, "ink": INK}.get(tone) or MODELS[int(tone[1:])]
        if line.low:
            _add_band(figure, line, color)
        if panel.bars:
            _add_bars(figure, line, color)
        else:
            _add_curve(figure, line, color)
    axis = {"type": "category"} if _worded(panel) else {}
    return styled(
        figure,
        height=240,
        xaxis={"showgrid": False, "zeroline": False, "nticks": 6, **axis,
               "title": {"text": safe_text(panel.x_label or x_label)}},
        yaxis={"zeroline": panel.bars, "nticks": 5, "title": {"text": safe_text(panel.unit)}},
        hovermode="x unified",
        bargap=0.25 if _worded(panel) else 0.04,
        barmode="overlay" if len(panel.lines) > 1 and not _worded(panel) else "group",
    )  # fmt: skip


def _worded(panel: CurvePanel) -> bool:
    return any(isinstance(x, str) for line in panel.lines for x in line.x)


def _x(line: Line) -> list[Any]:
    return [safe_text(x) if isinstance(x, str) else x for x in line.x]


def _add_curve(figure: Any, line: Line, color: str) -> None:
    figure.add_scatter(
        x=_x(line), y=list(line.y), name=safe_text(line.name),
        mode="lines+markers" if len(line.x) <= FEW else "lines",
        line={"color": color, "width": 2, "dash": "dot" if line.dashed else "solid"},
        marker={"size": 5},
        hovertemplate="%{y:.4g}",
    )  # fmt: skip


def _add_bars(figure: Any, line: Line, color: str) -> None:
    figure.add_bar(
        x=_x(line), y=list(line.y), name=safe_text(line.name),
        marker={"color": color, "opacity": 0.85, "line": {"width": 0}},
        hovertemplate="%{y:.4g}",
    )  # fmt: skip


def _add_band(figure: Any, line: Line, color: str) -> None:
    """The interval: down along its lower end and back along its upper one."""
    there = _x(line)
    figure.add_scatter(
        x=[*there, *reversed(there)], y=[*line.low, *reversed(line.high)], mode="lines",
        fill="toself", fillcolor=color, line={"width": 0, "color": color}, opacity=0.15,
        hoverinfo="skip", showlegend=False, name=safe_text(line.name),
    )  # fmt: skip


def heatmap_figure(block: Heatmap) -> Any:
    """A matrix in colors around zero: blue where negative, vermilion where positive."""
    import plotly.graph_objects as go

    values = [list(row) for row in block.values]
    reach = block.limit or max((abs(v) for row in values for v in row), default=0.0) or 1.0
    rows, columns = (
        [_name(n, block.tokens) for n in names] for names in (block.rows, block.columns)
    )
    figure = go.Figure()
    figure.add_heatmap(
        z=values,
        zmin=-reach, zmax=reach,
        colorscale=[[0.0, GOOD], [0.5, GROUND], [1.0, BAD]],
        xgap=1, ygap=1,
        colorbar={"thickness": 8, "outlinewidth": 0, "len": 0.9, "nticks": 5},
        text=[[f"{row}, {column}" for column in columns] for row in rows],
        hovertemplate="%{text}: %{z:.3f}<extra></extra>",
    )  # fmt: skip
    across = {"tickangle": -45, **_ticks(columns, block.axes[1])}
    return styled(
        figure,
        height=110 + 20 * max(len(block.rows), 6),
        xaxis={"side": "bottom", "showgrid": False, "zeroline": False, **across},
        yaxis={"autorange": "reversed", "showgrid": False, "zeroline": False,
               **_ticks(rows, block.axes[0])},
        hovermode="closest",
    )  # fmt: skip


def _ticks(names: list[str], title: str) -> dict[str, Any]:
    """Ticks by place, so that a token that stands twice keeps both its places."""
    return {
        "tickvals": list(range(len(names))),
        "ticktext": names,
        "title": {"text": safe_text(title)},
    }


def _name(name: str, token: bool) -> str:
    """Escaped and not too long; of a token, spaces and line ends to be seen."""
    if token:
        for sign, mark in (("\r", "↵"), ("\n", "↵"), ("\t", "⇥"), (" ", "␣")):
            name = name.replace(sign, mark)
    return safe_text(name if len(name) <= LONGEST else name[: LONGEST - 1] + "…") or "∅"
