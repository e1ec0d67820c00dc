"""Figures: plain data in, a plotly figure out.

Colors are named by meaning and written in their light form; the page swaps each for its dark form
where the reader's system is dark. The two pairs (blue and vermilion, slate and teal) stay apart
under the common color-vision deficiencies, and shape or dash repeats what color says.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trueline.report.blocks import CurvePanel, Line, RateChart, Scatter, ScatterPanel
from trueline.results import Metric

INK, MUTED, GRID, GROUND = "#26292e", "#6b7078", "#e4e3df", "#fefefd"
GOOD, BAD = "#1f6fb2", "#c9501c"
MODELS = ("#7a7f87", "#0b7a75", "#8a5a9e", "#b0792a", "#3f6fb5")
DARK = {
    INK: "#e8e6e1",
    MUTED: "#a2a5aa",
    GRID: "#34373d",
    GROUND: "#1b1d21",
    GOOD: "#6db3ee",
    BAD: "#f08a5a",
    MODELS[0]: "#a9aeb6",
    MODELS[1]: "#4cc4bb",
    MODELS[2]: "#c89bdc",
    MODELS[3]: "#e0b163",
    MODELS[4]: "#8fb2ec",
}
"""Each light color's dark form."""

SYMBOLS = ("circle", "diamond", "square", "triangle-up", "cross")
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
Range = tuple[float, float]


def safe_text(text: str) -> str:
    """Text for a figure: plotly reads a little HTML in labels, so its characters are escaped."""
    return html.escape(text, quote=False)


def wrapped(text: str, width: int = 48) -> str:
    """Escaped text in lines, for hover labels, which do not wrap by themselves."""
    import textwrap

    return "<br>".join(safe_text(line) for line in textwrap.wrap(text, width)[:4])


def model_color(index: int) -> str:
    """The color of the index-th model; the first, the one compared with, is gray."""
    return MODELS[index % len(MODELS)]


def rate_figure(chart: RateChart) -> Any:
    """Dots with whiskers, groups from top to bottom and the series of a group close together."""
    import plotly.graph_objects as go

    figure = go.Figure()
    count = len(chart.series)
    rates = all(m is None or m.unit == "rate" for ms in chart.series.values() for m in ms)
    for index, (name, metrics) in enumerate(chart.series.items()):
        offset = 0.0 if count == 1 else (index / (count - 1) - 0.5) * min(0.5, 0.2 * count)
        shown = [(g, m) for g, m in enumerate(metrics) if m is not None and m.value is not None]
        figure.add_scatter(
            x=[m.value for _, m in shown],
            y=[g + offset for g, _ in shown],
            name=safe_text(name),
            mode="markers",
            marker=_marker(index),
            error_x=_whiskers([m for _, m in shown], model_color(index)),
            text=[f"{safe_text(chart.groups[g])}<br>{safe_text(f'{name}: {m}')}" for g, m in shown],
            hovertemplate="%{text}<extra></extra>",
        )
    x_axis = {"range": [-0.015, 1.015], "tickformat": ".0%", "dtick": 0.25} if rates else {}
    ticks = [wrapped(group, 22) for group in chart.groups]
    return _styled(
        figure,
        height=56 + len(chart.groups) * max(46, 24 * count),
        xaxis={**x_axis, "showgrid": True, "zeroline": False},
        yaxis={
            "tickvals": list(range(len(ticks))),
            "ticktext": ticks,
            "range": [len(ticks) - 0.5, -0.5],
            "showgrid": False,
            "zeroline": False,
            "ticklabelstandoff": 8,
        },
        hovermode="closest",
    )


def _marker(index: int) -> dict[str, Any]:
    return {
        "color": model_color(index),
        "symbol": SYMBOLS[index % len(SYMBOLS)],
        "size": 10,
        "line": {"color": GROUND, "width": 1.5},
    }


def _whiskers(metrics: Sequence[Metric], color: str) -> dict[str, Any]:
    def reach(metric: Metric, end: float | None) -> float:
        return 0.0 if end is None or metric.value is None else abs(end - metric.value)

    return {
        "type": "data",
        "symmetric": False,
        "array": [reach(metric, metric.high) for metric in metrics],
        "arrayminus": [reach(metric, metric.low) for metric in metrics],
        "color": color,
        "thickness": 2,
        "width": 0,
    }


def scatter_figure(panel: ScatterPanel, ranges: tuple[Range, Range] | None = None) -> Any:
    """Harmful and safe prompts in the plane, each with the ellipse of two standard deviations."""
    import plotly.graph_objects as go

    figure = go.Figure()
    points = np.column_stack([np.asarray(panel.x, float), np.asarray(panel.y, float)])
    harmful = np.asarray(panel.harmful, dtype=bool)
    texts = list(panel.text) or [""] * len(points)
    classes = (("safe", ~harmful, GOOD, "circle"), ("harmful", harmful, BAD, "diamond"))
    for name, mask, color, _ in classes:
        outline = _ellipse(points[mask])
        if outline is not None:
            figure.add_scatter(
                x=outline[:, 0].round(4).tolist(), y=outline[:, 1].round(4).tolist(), mode="lines",
                fill="toself", line={"color": color, "width": 1}, fillcolor=color, opacity=0.14,
                hoverinfo="skip", name=name, showlegend=False,
            )  # fmt: skip
    for name, mask, color, symbol in classes:
        words = [wrapped(t) for t, keep in zip(texts, mask, strict=True) if keep]
        figure.add_scatter(
            x=points[mask, 0].tolist(), y=points[mask, 1].tolist(), mode="markers", name=name,
            marker={"color": color, "symbol": symbol, "size": 6.5, "opacity": 0.8,
                    "line": {"color": GROUND, "width": 0.75}},
            text=words, hovertemplate=f"<b>{name}</b><br>%{{text}}<extra></extra>",
        )  # fmt: skip
    across, up = ranges or _ranges([panel])[0]
    quiet = {"zeroline": False, "showgrid": True, "nticks": 5}
    return _styled(
        figure,
        height=340,
        xaxis={**quiet, "range": list(across), "title": {"text": "first component"}},
        yaxis={**quiet, "range": list(up), "title": {"text": "second component"}},
        hovermode="closest",
    )


def scatter_ranges(scatter: Scatter) -> list[tuple[Range, Range]]:
    """Every panel's axes: common ones where that is asked for or where the clouds are alike."""
    own = _ranges(scatter.panels)
    if len(own) < 2 or scatter.same_scale is False:
        return own
    widths = [[high - low for low, high in pair] for pair in own]
    alike = all(max(side) <= 3 * min(side) for side in zip(*widths, strict=True))
    if not (alike or scatter.same_scale):
        return own
    across = (min(a[0] for a, _ in own), max(a[1] for a, _ in own))
    up = (min(u[0] for _, u in own), max(u[1] for _, u in own))
    return [(across, up)] * len(own)


def _ranges(panels: Sequence[ScatterPanel]) -> list[tuple[Range, Range]]:
    found = []
    for panel in panels:
        points = np.column_stack([np.asarray(panel.x, float), np.asarray(panel.y, float)])
        mask = np.asarray(panel.harmful, dtype=bool)
        outlines = [o for o in (_ellipse(points[mask]), _ellipse(points[~mask])) if o is not None]
        every = np.concatenate([points, *outlines]) if len(points) else np.array([[-1.0], [1.0]])
        low, high = every.min(axis=0), every.max(axis=0)
        margin = 0.04 * np.maximum(high - low, 1e-9)
        ends = [(float(a), float(b)) for a, b in zip(low - margin, high + margin, strict=True)]
        found.append((ends[0], ends[-1]))
    return found


def _ellipse(points: Any, deviations: float = 2.0) -> Any | None:
    """The outline of a cloud's Gaussian at so many standard deviations; None below 3 points."""
    if len(points) < 3:
        return None
    values, vectors = np.linalg.eigh(np.cov(points, rowvar=False))
    angle = np.linspace(0, 2 * np.pi, 73)
    circle = np.column_stack([np.cos(angle), np.sin(angle)])
    return points.mean(axis=0) + deviations * circle * np.sqrt(np.maximum(values, 0)) @ vectors.T


def curve_color(line: Line, index: int) -> str:
    """A curve's color by its meaning."""
    return {"good": GOOD, "bad": BAD, "main": MODELS[1], "other": model_color(index + 2)}[line.tone]


def curve_figure(panel: CurvePanel, x_label: str = "step") -> Any:
    """Curves over steps, read together at one step by hovering."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for index, line in enumerate(panel.lines):
        few = len(line.x) <= 12
        figure.add_scatter(
            x=list(line.x), y=list(line.y), name=safe_text(line.name),
            mode="lines+markers" if few else "lines",
            line={"color": curve_color(line, index), "width": 2,
                  "dash": "dot" if line.dashed else "solid"},
            marker={"size": 5},
            hovertemplate="%{y:.4g}",
        )  # fmt: skip
    return _styled(
        figure,
        height=240,
        xaxis={"showgrid": False, "zeroline": False, "title": {"text": safe_text(x_label)},
               "nticks": 6},
        yaxis={"zeroline": False, "nticks": 5, "title": {"text": safe_text(panel.unit)}},
        hovermode="x unified",
    )  # fmt: skip


def _styled(figure: Any, **layout: Any) -> Any:
    """The look all figures share: no frame, a quiet grid, the page's own type."""
    axis: Mapping[str, Any] = {
        "gridcolor": GRID,
        "linecolor": GRID,
        "zerolinecolor": GRID,
        "tickfont": {"color": MUTED, "size": 12},
        "ticks": "",
        "automargin": True,
        "fixedrange": True,
    }
    for name in ("xaxis", "yaxis"):
        own = layout.pop(name, {})
        title = {"font": {"color": MUTED, "size": 12}, "standoff": 10, **own.pop("title", {})}
        layout[name] = {**axis, **own, "title": title}
    figure.update_layout(
        template="none",
        showlegend=False,
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": FONT, "size": 13, "color": INK},
        margin={"l": 8, "r": 22, "t": 8, "b": 8},
        hoverlabel={"bgcolor": GROUND, "bordercolor": GRID, "font": {"color": INK, "family": FONT},
                    "align": "left"},
        **layout,
    )  # fmt: skip
    return figure
