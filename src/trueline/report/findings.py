"""From a finding's figures, which are plain data, to the blocks that draw them.

One function a kind of figure, by the name under which findings carry it. A kind that nothing here
draws and data that do not fit are said on the page, never lost: a report may be older than the
finding it shows, or a plug-in's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

from trueline.errors import UserError
from trueline.report.blocks import Block, Verdict, Verdicts
from trueline.report.pictures import (
    CurvePanel,
    Curves,
    Heatmap,
    Line,
    RateChart,
    Scatter,
    ScatterPanel,
)
from trueline.results import Finding, Metric
from trueline.runs.record import FINDINGS

Figures: TypeAlias = Mapping[str, Any]
Drawer: TypeAlias = Callable[[Figures], Iterator[Block]]

NOTES = frozenset({"reach", "held_out", "centers"})
"""What findings carry beside figures: facts that a drawing of another kind uses, or words tell."""

DRAWERS: dict[str, Drawer] = {}
"""A function for each kind of figure; it is given all the figures of the finding."""


def draws(kind: str) -> Callable[[Drawer], Drawer]:
    """Say that a function draws the figures of this name."""

    def add(drawer: Drawer) -> Drawer:
        DRAWERS[kind] = drawer
        return drawer

    return add


@dataclass(frozen=True, slots=True)
class Drawn:
    """The blocks of a finding's figures, and what could not be drawn, in words."""

    blocks: Sequence[Block]
    problems: Sequence[str]


def draw(finding: Finding) -> Drawn:
    """All figures of a finding as blocks.

    Example:
        >>> draw(Finding("mine", "", figures={"tree": [1, 2]})).problems
        ['mine has a figure of a kind this report does not draw: tree; findings.json has its data']
    """
    blocks: list[Block] = []
    problems = []
    for kind in finding.figures:
        if kind in NOTES:
            continue
        if kind not in DRAWERS:
            problems.append(
                f"{finding.name} has a figure of a kind this report does not draw: {kind}; "
                f"{FINDINGS} has its data"
            )
            continue
        try:
            blocks += DRAWERS[kind](finding.figures)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, UserError) as error:
            what = f"{type(error).__name__}: {error}"
            problems.append(f"the {kind} of {finding.name} cannot be drawn ({what})")
    return Drawn(blocks, problems)


@draws("sentences")
def _sentences(figures: Figures) -> Iterator[Block]:
    yield Verdicts(
        [
            Verdict(str(s["question"]), str(s["answer"]), str(s["text"]), str(s.get("advice", "")))
            for s in figures["sentences"]
        ]
    )


@draws("curves")
def _curves(figures: Figures) -> Iterator[Block]:
    data = figures["curves"]
    panels = [
        CurvePanel(panel["title"], panel["unit"], [Line(**line) for line in panel["lines"]])
        for panel in data["panels"]
    ]
    yield Curves(panels, x_label=data["x_label"])


@draws("rates")
def _rates(figures: Figures) -> Iterator[Block]:
    data = figures["rates"]
    series = {name: [_metric(m) for m in metrics] for name, metrics in data["series"].items()}
    yield RateChart(data["groups"], series)


def _metric(value: Metric | Mapping[str, Any] | None) -> Metric | None:
    """A metric as it is, or as it comes back from JSON."""
    return Metric(**value) if isinstance(value, Mapping) else value


@draws("scatter")
def _scatter(figures: Figures) -> Iterator[Block]:
    yield Scatter([scatter_panel(figures["scatter"])])


def scatter_panel(data: Mapping[str, Any], title: str = "", caption: str = "") -> ScatterPanel:
    """A separation's scatter as a panel."""
    return ScatterPanel(title, data["x"], data["y"], data["harmful"], data.get("text", ()), caption)


PROFILES = {
    "bhattacharyya_distance": ("Bhattacharyya distance", "distance"),
    "probe_auroc": ("Linear probe", "AUROC"),
}


@draws("profile")
def _profile(figures: Figures) -> Iterator[Block]:
    panels = []
    for name, points in figures["profile"].items():
        known = [(layer, p) for layer, p in enumerate(points) if p[0] is not None]
        layers = [layer for layer, _ in known]
        values, lows, highs = ([p[k] for _, p in known] for k in range(3))
        whole = None not in lows and None not in highs
        line = Line("", layers, values, low=lows if whole else (), high=highs if whole else ())
        title, unit = PROFILES.get(name, (name.replace("_", " "), ""))
        panels.append(CurvePanel(title, unit, [line]))
    yield Curves(
        panels,
        caption="Layer 0 is the embeddings; the shade is the interval. Layers that could not be "
        "scored are left out.",
        x_label="layer",
    )


@draws("pairs")
def _pairs(figures: Figures) -> Iterator[Block]:
    data = figures["pairs"]
    moves = zip(data["change_chosen"], data["change_rejected"], strict=True)
    known = [i for i, move in enumerate(moves) if None not in move]
    across = [data["change_chosen"][i] for i in known]
    yield Scatter(
        [
            ScatterPanel(
                "A small step on one pair alone",
                across,
                [data["change_rejected"][i] for i in known],
                [x < 0 for x in across],
                [str(data["id"][i]) for i in known],
            )
        ],
        caption="One point a pair. Right of zero and below it is what training wants: chosen "
        "rises, rejected falls.",
        classes=("chosen rises", "chosen falls"),
        axes=("change of log-prob of chosen", "change of log-prob of rejected"),
        outlines=False,
    )


@draws("gram")
def _gram(figures: Figures) -> Iterator[Block]:
    labels, inner = _short(figures["gram"]["labels"]), figures["gram"]["inner"]
    norms = [row[i] ** 0.5 if row[i] > 0 else 0.0 for i, row in enumerate(inner)]
    cosines = [
        [v / (a * b) if a * b else 0.0 for v, b in zip(row, norms, strict=True)]
        for row, a in zip(inner, norms, strict=True)
    ]
    yield Heatmap(
        labels,
        labels,
        cosines,
        "One batch's gradients against each other",
        "Cosines between the gradients of completions' log-probs. Off the blocks of two, it is "
        "other pairs that pull.",
        limit=1.0,
    )


def _short(labels: Sequence[str]) -> list[str]:
    """The labels without the file's name that all begin with."""
    files = {label.rpartition(":")[0] for label in labels}
    return [label.rpartition(":")[2] for label in labels] if len(files) == 1 else list(labels)


@draws("layers")
def _layers(figures: Figures) -> Iterator[Block]:
    data = figures["layers"]
    bars = [("Cosine, chosen against rejected", "cosine", "cosine"),
            ("Part of the inner product", "mean", "inner")]  # fmt: skip
    panels = [
        CurvePanel(title, unit, [Line("", data["layer"], data[key])], bars=True)
        for title, unit, key in bars
    ]
    yield Curves(panels, "Where in the model the gradients meet", x_label="")


@draws("heat_maps")
def _heat_maps(figures: Figures) -> Iterator[Block]:
    for data in figures["heat_maps"]:
        cut = " Only the first tokens are shown." if data.get("cut") else ""
        yield Heatmap(
            data["chosen"],
            data["rejected"],
            data["cosine"],
            f"Token by token: {data['id']}",
            "Cosines between the gradients of single tokens' log-probs: where they are high, "
            f"pushing the rejected token down drags the chosen one along.{cut}",
            axes=("chosen", "rejected"),
            limit=1.0,
            tokens=True,
        )


@draws("difficulty")
def _difficulty(figures: Figures) -> Iterator[Block]:
    panels = [_histogram(figures["difficulty"], "Difficulty", "c, nats", "main")]
    if "margin" in figures:
        panels.append(_histogram(figures["margin"], "Margin of the model", "nats", "other"))
    reach = figures.get("reach") or {}
    limit = reach.get("limit")
    beyond = (
        ""
        if limit is None
        else f" Beyond {limit:.4g} a pair is out of reach of "
        + (f"{reach.get('title', 'the objective')} even at its optimum.")
    )
    yield Curves(
        panels,
        caption="Difficulty is how much more likely the reference holds the rejected completion "
        f"than the chosen one: above 0 it ranks the pair wrong.{beyond}",
        x_label="nats",
    )


@draws("margin")
def _margin(figures: Figures) -> Iterator[Block]:
    if "difficulty" not in figures:  # which draws both side by side
        yield Curves([_histogram(figures["margin"], "Margin", "nats", "other")])


@draws("c")
def _c(figures: Figures) -> Iterator[Block]:
    panel = _histogram(
        figures["c"], "Difficulty", "c, nats: above 0 the reference is wrong", "main"
    )
    yield Curves([panel])


def _histogram(data: Mapping[str, Any], title: str, x_label: str, tone: Any) -> CurvePanel:
    """Bars over the middles of the bins."""
    middles = [(a + b) / 2 for a, b in pairwise(data["edge"])]
    line = Line("pairs", middles, data["count"], tone)
    return CurvePanel(title, "pairs", [line], bars=True, x_label=x_label)


@draws("cosines")
def _cosines(figures: Figures) -> Iterator[Block]:
    lines = [
        Line(group, figures["centers"], shares, "main" if group == "selected" else "other")
        for group, shares in figures["cosines"].items()
    ]
    panel = CurvePanel("Cosine of a pair's two responses", "share of pairs", lines)
    yield Curves([panel], x_label="cosine")
