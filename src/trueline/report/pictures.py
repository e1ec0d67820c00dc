"""The blocks of a report that are pictures: plain data, drawn by ``drawing.figures``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from trueline.errors import UserError
from trueline.results import Metric

Tone: TypeAlias = Literal["good", "bad", "main", "other"]
"""A color by its meaning."""


@dataclass(frozen=True, slots=True)
class RateChart:
    """Dots with whiskers: one line for each group, one dot for each series (a model).

    ``series`` maps a model to one metric for each group, None where it was not measured.
    """

    groups: Sequence[str]
    series: Mapping[str, Sequence[Metric | None]]
    title: str = ""
    caption: str = ""

    def __post_init__(self) -> None:
        for name, metrics in self.series.items():
            if len(metrics) != len(self.groups):
                raise UserError(
                    f"chart {self.title!r}: {name!r} has {len(metrics)} metrics for "
                    f"{len(self.groups)} groups"
                )


@dataclass(frozen=True, slots=True)
class ScatterPanel:
    """Points in a plane, in two classes, and what each point says.

    ``harmful`` marks the second class of :attr:`Scatter.classes`, whatever that is called.
    """

    title: str
    x: Sequence[float]
    y: Sequence[float]
    harmful: Sequence[bool]
    text: Sequence[str] = ()
    caption: str = ""

    def __post_init__(self) -> None:
        sizes = {len(self.x), len(self.y), len(self.harmful), len(self.text) or len(self.x)}
        if len(sizes) > 1:
            raise UserError(f"scatter {self.title!r}: x, y, harmful and text differ in length")


@dataclass(frozen=True, slots=True)
class Scatter:
    """Panels side by side.

    ``same_scale`` gives all panels the same axes; None does so where no panel's cloud is more
    than three times as wide as another's. (Each panel is a plane of its own: the scale may be
    compared, the place may not.) ``outlines`` draws each class's ellipse; without them the axes
    through zero are drawn.
    """

    panels: Sequence[ScatterPanel]
    title: str = ""
    caption: str = ""
    same_scale: bool | None = None
    classes: tuple[str, str] = ("safe prompt", "harmful prompt")
    axes: tuple[str, str] = ("first component", "second component")
    outlines: bool = True


@dataclass(frozen=True, slots=True)
class Line:
    """One curve. ``tone`` fixes its color by meaning; ``dashed`` marks evaluation.

    ``low`` and ``high``, given together, shade the interval around it. ``x`` may be words, for
    bars.
    """

    name: str
    x: Sequence[float] | Sequence[str]
    y: Sequence[float]
    tone: Tone = "main"
    dashed: bool = False
    low: Sequence[float] = ()
    high: Sequence[float] = ()

    def __post_init__(self) -> None:
        ends = {len(self.low), len(self.high)} - {0}
        if len(self.x) != len(self.y) or not ends <= {len(self.y)} or (self.low and not self.high):
            raise UserError(f"curve {self.name!r}: x, y, low and high differ in length")


@dataclass(frozen=True, slots=True)
class CurvePanel:
    """Curves on common axes, or bars (a histogram, or one bar a name)."""

    title: str
    unit: str
    lines: Sequence[Line]
    bars: bool = False
    x_label: str = ""
    """Where it differs from the other panels'."""


@dataclass(frozen=True, slots=True)
class Curves:
    """Panels of curves over one horizontal axis."""

    panels: Sequence[CurvePanel]
    title: str = ""
    caption: str = ""
    x_label: str = "step"


@dataclass(frozen=True, slots=True)
class Heatmap:
    """A matrix of numbers in colors, its rows and columns named.

    ``values`` has one row for each of ``rows``; colors are centered at zero and reach ``limit``,
    or the largest absolute value. ``tokens``: the names are tokens, whose spaces matter.
    """

    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[float]]
    title: str = ""
    caption: str = ""
    axes: tuple[str, str] = ("", "")
    limit: float | None = None
    tokens: bool = False

    def __post_init__(self) -> None:
        widths = {len(row) for row in self.values}
        if len(self.values) != len(self.rows) or not widths <= {len(self.columns)}:
            raise UserError(
                f"heat map {self.title!r}: expected {len(self.rows)} rows of "
                f"{len(self.columns)} numbers"
            )


@dataclass(frozen=True, slots=True)
class ImageRow:
    """One prompt's pictures, as PNG bytes, one for each column (None where there is none), and a
    few words under each."""

    prompt: str
    images: Sequence[bytes | None]
    notes: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class ImageGrid:
    """Pictures side by side: models across, prompts down.

    ``pixelated`` keeps the edges of tiny pictures sharp.
    """

    columns: Sequence[str]
    rows: Sequence[ImageRow]
    title: str = ""
    caption: str = ""
    pixelated: bool = False

    def __post_init__(self) -> None:
        for row in self.rows:
            counts = {len(row.images), len(row.notes) or len(row.images)}
            if counts != {len(self.columns)}:
                raise UserError(
                    f"image grid {self.title!r}: the row of {row.prompt!r} must have a picture, "
                    f"and a note or none, for each of {len(self.columns)} columns"
                )
