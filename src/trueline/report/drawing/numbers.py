"""Numbers for reading: rounding, signs, intervals, and where a dot and its whisker lie."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from trueline.report.drawing.style import MODELS, SYMBOLS, model_symbol
from trueline.results import Metric

View: TypeAlias = dict[str, Any]

NEUTRAL = -1
"""The tone of what belongs to no model."""


def number(value: float, unit: str = "") -> str:
    """A number for reading: a rate in percent, else about three digits that matter.

    Example:
        >>> number(0.0312, "rate"), number(12.3456), number(0.00123), number(1234567)
        ('3.1%', '12.35', '0.00123', '1,234,567')
    """
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else ("∞" if value > 0 else "−∞")
    if unit == "rate":
        return f"{100 * value:.1f}%".replace("-", "−")
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}".replace("-", "−")
    shown = f"{value:,.2f}" if 0.01 <= abs(value) < 1e6 else f"{value:.3g}"
    return shown.replace("-", "−")


def change(value: float, unit: str = "") -> str:
    """A difference for reading: with its sign, a difference of rates in percentage points.

    Example:
        >>> change(0.04, "rate"), change(2.5)
        ('+4.0 pts', '+2.50')
    """
    sign = "+" if value > 0 else ""
    return sign + number(value, unit).replace("%", " pts")


def span(metric: Metric, show: Callable[[float, str], str] = number) -> str:
    """The interval in words' size, ``"1.2 to 7.0%"``, or an empty string."""
    if metric.low is None or metric.high is None:
        return ""
    low, high = show(metric.low, metric.unit), show(metric.high, metric.unit)
    for suffix in ("%", " pts"):
        low = low.removesuffix(suffix) if high.endswith(suffix) else low
    return f"{low} to {high}"


def listed(parts: Sequence[str]) -> str:
    """Parts as a sentence has them.

    Example:
        >>> listed(["a", "b", "c"]), listed(["a"])
        ('a, b and c', 'a')
    """
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if parts[1:] else parts)


def words(metric: Metric) -> str:
    """A metric within a sentence or a caption: its value, then its interval in brackets.

    Example:
        >>> words(Metric("asr", 0.03, 0.01, 0.085, unit="rate"))
        '3.0% (1.0 to 8.5%)'
    """
    if metric.value is None:
        return "unscored"
    reach = span(metric)
    return number(metric.value, metric.unit) + (f" ({reach})" if reach else "")


def metric_view(
    metric: Metric,
    scale: tuple[float, float] | None = None,
    tone: int = 0,
    show: Callable[[float, str], str] = number,
    bound: float | None = None,
) -> View:
    """A metric for the page: its value, its interval, and where its dot, its whisker and its bound
    lie (0-100); ``tone`` is the place of the model whose mark it bears."""
    if metric.value is None:
        return {"kind": "metric", "value": "unscored", "span": "", "n": metric.n, "bar": None}
    bar = None
    if scale is not None:
        at = _place(scale)
        low = metric.value if metric.low is None else metric.low
        high = metric.value if metric.high is None else metric.high
        zero = at(0.0) if scale[0] < 0 < scale[1] else None
        bar = {"low": at(low), "high": at(high), "dot": at(metric.value), "zero": zero,
               "bound": None if bound is None else at(bound)}  # fmt: skip
    return {
        "kind": "metric",
        "value": show(metric.value, metric.unit),
        "span": span(metric, show),
        "level": f"{100 * metric.level:g}%",
        "n": metric.n,
        "unit": "" if metric.unit == "rate" else metric.unit,
        "bar": bar,
        "mark": mark_view(tone),
    }


def mark_view(index: int) -> View:
    """A model's mark, by its place among them: the color's name in the palette, and the shape."""
    symbol = SYMBOLS[0] if index == NEUTRAL else model_symbol(index)
    return {"tone": tone_name(index), "symbol": symbol}


def tone_name(index: int) -> str:
    """The name of a model's color in the page's palette."""
    return "ink" if index == NEUTRAL else f"m{index % len(MODELS)}"


def _place(scale: tuple[float, float]) -> Any:
    low, high = scale
    return lambda x: round(3 + 94 * min(max((x - low) / (high - low), 0.0), 1.0), 2)


def common_scale(metrics: Sequence[Metric]) -> tuple[float, float] | None:
    """The ends of an axis that holds all the metrics: 0 to 1 for rates, else from 0 on."""
    known = [m for m in metrics if m.value is not None]
    ends = [e for m in known for e in (m.value, m.low, m.high) if e is not None]
    if not ends:
        return None
    if all(m.unit == "rate" for m in known):
        return (-1.0 if min(ends) < 0 else 0.0), 1.0
    low, high = min(0.0, *ends), max(0.0, *ends)
    return (low, high) if high > low else None
