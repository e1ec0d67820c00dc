"""Figures of rates and points: plain data in, a plotly figure out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from trueline.report.drawing.style import (
    BAD,
    GOOD,
    GROUND,
    model_color,
    model_symbol,
    safe_text,
    styled,
    wrapped,
)
from trueline.report.pictures import RateChart, Scatter, ScatterPanel
from trueline.results import Metric

Range = tuple[float, float]


def rate_figure(chart: RateChart, places: Sequence[int] = ()) -> Any:
    """Dots with whiskers, groups from top to bottom and the series of a group close together;
    ``places`` are those of the series among the models, in turn unless given."""
    import plotly.graph_objects as go

    figure = go.Figure()
    count = len(chart.series)
    rates = all(m is None or m.unit == "rate" for ms in chart.series.values() for m in ms)
    places = places or range(count)
    for index, (name, metrics) in enumerate(chart.series.items()):
        offset = 0.0 if count == 1 else (index / (count - 1) - 0.5) * min(0.5, 0.2 * count)
        shown = [(g, m) for g, m in enumerate(metrics) if m is not None and m.value is not None]
        figure.add_scatter(
            x=[m.value for _, m in shown],
            y=[g + offset for g, _ in shown],
            name=safe_text(name),
            mode="markers",
            marker=_marker(places[index]),
            error_x=_whiskers([m for _, m in shown], model_color(places[index])),
            text=[f"{safe_text(chart.groups[g])}<br>{safe_text(f'{name}: {m}')}" for g, m in shown],
            hovertemplate="%{text}<extra></extra>",
        )
    x_axis = {"range": [-0.015, 1.015], "tickformat": ".0%", "dtick": 0.25} if rates else {}
    ticks = [wrapped(group, 22) for group in chart.groups]
    return styled(
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
        "symbol": model_symbol(index),
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


def scatter_figure(block: Scatter, panel: ScatterPanel, ranges: tuple[Range, Range]) -> Any:
    """A panel's two classes in the plane, each with the ellipse of two standard deviations."""
    import plotly.graph_objects as go

    figure = go.Figure()
    points = _points(panel)
    second = np.asarray(panel.harmful, dtype=bool)
    texts = list(panel.text) or [""] * len(points)
    looks = ((~second, GOOD, "circle"), (second, BAD, "diamond"))
    classes = [(name, *look) for name, look in zip(block.classes, looks, strict=True)]
    for name, mask, color, _ in classes:
        outline = _ellipse(points[mask]) if block.outlines else None
        if outline is not None:
            figure.add_scatter(
                x=outline[:, 0].round(4).tolist(), y=outline[:, 1].round(4).tolist(), mode="lines",
                fill="toself", line={"color": color, "width": 1}, fillcolor=color, opacity=0.14,
                hoverinfo="skip", name=safe_text(name), showlegend=False,
            )  # fmt: skip
    for name, mask, color, symbol in classes:
        kept = [text for text, keep in zip(texts, mask, strict=True) if keep]
        figure.add_scatter(
            x=points[mask, 0].tolist(), y=points[mask, 1].tolist(), mode="markers",
            name=safe_text(name),
            marker={"color": color, "symbol": symbol, "size": 6.5, "opacity": 0.8,
                    "line": {"color": GROUND, "width": 0.75}},
            text=[f"<b>{safe_text(name)}</b><br>{wrapped(text)}" for text in kept],
            hovertemplate="%{text}<extra></extra>",
        )  # fmt: skip
    across, up = ranges
    quiet = {"zeroline": not block.outlines, "showgrid": True, "nticks": 5}
    return styled(
        figure,
        height=340,
        xaxis={**quiet, "range": list(across), "title": {"text": safe_text(block.axes[0])}},
        yaxis={**quiet, "range": list(up), "title": {"text": safe_text(block.axes[1])}},
        hovermode="closest",
    )


def scatter_ranges(scatter: Scatter) -> list[tuple[Range, Range]]:
    """Every panel's axes: common ones where that is asked for or where the clouds are alike."""
    own = [_range(panel, outlines=scatter.outlines) for panel in scatter.panels]
    if len(own) < 2 or scatter.same_scale is False:
        return own
    widths = [[high - low for low, high in pair] for pair in own]
    alike = all(max(side) <= 3 * min(side) for side in zip(*widths, strict=True))
    if not (alike or scatter.same_scale):
        return own
    across = (min(a[0] for a, _ in own), max(a[1] for a, _ in own))
    up = (min(u[0] for _, u in own), max(u[1] for _, u in own))
    return [(across, up)] * len(own)


def _range(panel: ScatterPanel, *, outlines: bool) -> tuple[Range, Range]:
    points = _points(panel)
    mask = np.asarray(panel.harmful, dtype=bool)
    ellipses = [_ellipse(points[mask]), _ellipse(points[~mask])] if outlines else []
    extra = [o for o in ellipses if o is not None] if outlines else [np.zeros((1, 2))]
    every = np.concatenate([points, *extra]) if len(points) else np.array([[-1.0] * 2, [1.0] * 2])
    low, high = every.min(axis=0), every.max(axis=0)
    margin = 0.04 * np.maximum(high - low, 1e-9)
    across, up = zip(low - margin, high + margin, strict=True)
    return (float(across[0]), float(across[1])), (float(up[0]), float(up[1]))


def _points(panel: ScatterPanel) -> Any:
    return np.column_stack([np.asarray(panel.x, float), np.asarray(panel.y, float)])


def _ellipse(points: Any, deviations: float = 2.0) -> Any | None:
    """The outline of a cloud's Gaussian at so many standard deviations; None below 3 points."""
    if len(points) < 3:
        return None
    values, vectors = np.linalg.eigh(np.cov(points, rowvar=False))
    angle = np.linspace(0, 2 * np.pi, 73)
    circle = np.column_stack([np.cos(angle), np.sin(angle)])
    return points.mean(axis=0) + deviations * circle * np.sqrt(np.maximum(values, 0)) @ vectors.T
