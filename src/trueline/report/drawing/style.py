"""The look all figures share, and what becomes of text in them.

Colors are named by meaning and written in their light form; the page swaps each for its dark form
where the reader's system is dark. The two pairs (blue and vermilion, slate and teal) stay apart
under the common color-vision deficiencies, and shape or dash repeats what color says.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from typing import Any

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
SHAPES = {
    "circle": "M6 1.4a4.6 4.6 0 1 0 0 9.2a4.6 4.6 0 1 0 0-9.2z",
    "diamond": "M6 .4L11.6 6L6 11.6L.4 6z",
    "square": "M1.800 1.800h8.400v8.400h-8.400z",
    "triangle-up": "M6 .9L11.4 10.400H.6z",
    "cross": "M4.200 .9h3.600v3.300h3.300v3.600h-3.300v3.300h-3.600v-3.300h-3.300v-3.600h3.300z",
}
"""The same shapes as paths in a square of 12, for the page's own marks."""
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"

_INVISIBLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    """Control characters, and those that turn the direction of what follows, written out.

    Example:
        >>> print(visible("safe\\u202etxt.exe"))
        safe\\u202etxt.exe
    """
    return _INVISIBLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def safe_text(text: str) -> str:
    """Text for a figure: plotly reads a little HTML in labels, so its characters are escaped."""
    return html.escape(visible(text), quote=False)


def wrapped(text: str, width: int = 48) -> str:
    """Escaped text in lines, for hover labels, which do not wrap by themselves."""
    import textwrap

    return "<br>".join(safe_text(line) for line in textwrap.wrap(text, width)[:4])


def model_color(index: int) -> str:
    """The color of the index-th model; the first, the one compared with, is gray."""
    return MODELS[index % len(MODELS)]


def model_symbol(index: int) -> str:
    """Its shape: with the color, no two of the first 25 models are alike."""
    return SYMBOLS[(index + index // len(MODELS)) % len(SYMBOLS)]


def styled(figure: Any, **layout: Any) -> Any:
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
