"""Tables of a comparison for the terminal; names come from logs and are never markup."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from trueline.evaluation.comparison import Comparison
    from trueline.results import Finding


def rates(result: Comparison) -> Table:
    """Every run's own rates: scopes down, runs across."""
    table = Table(
        title=f"rates [{result.confidence:.0%} interval]", title_justify="left", show_lines=False
    )
    table.add_column("")
    for run in result.runs:
        table.add_column(Text(run), justify="right")
    for scope in dict.fromkeys(level.scope for level in result.levels):
        own = {level.run: level for level in result.levels if level.scope == scope}
        cells = [_cell(own[run].metric) if run in own else "" for run in result.runs]
        name = Text(str(scope), "bold") if scope.whole else Text(f"  {scope.part}")
        table.add_row(name, *cells)
        corrected = [own[run].corrected for run in result.runs if run in own]
        if scope.whole and any(metric is not None for metric in corrected):
            table.add_row(Text("  with the judge's own error"), *map(_cell, corrected))
    table.add_section()
    named = [{m.name: m for m in result.quality[run]} for run in result.runs]
    for share in dict.fromkeys(share for own in named for share in own):
        table.add_row(Text(share, "dim"), *(_cell(own.get(share)) for own in named))
    return table


def _cell(metric: object) -> Text:
    return Text("" if metric is None else str(metric))


def differences(result: Comparison) -> Table:
    """Each run against the baseline: effect and interval, counts, and the p-values last."""
    from trueline.evaluation.comparison.words import difference_words, p_words

    table = Table(title=f"change from {result.baseline}", title_justify="left")
    for name in ("run", "", "change [interval]", "fixed", "broken", "pairs", "p", "p, Holm"):
        table.add_column(Text(name), justify="right" if name in ("fixed", "broken", "pairs") else
                         "left")  # fmt: skip
    for contrast in result.contrasts:
        whole = contrast.scope.whole
        counts = [contrast.fixed, contrast.broken, contrast.difference.n]
        ps = [contrast.p_value, contrast.p_holm]
        table.add_row(
            Text(contrast.run if whole else ""),
            Text(str(contrast.scope), "bold") if whole else Text(f"  {contrast.scope.part}"),
            Text(difference_words(contrast.difference), "bold" if whole else ""),
            *(Text("" if count is None else f"{count:,}") for count in counts),
            *(Text("" if p is None else p_words(p).removeprefix("= ")) for p in ps),
        )
    return table


def metrics(finding: Finding) -> Table:
    """A finding's metrics, one a row."""
    table = Table(title=finding.name, title_justify="left")
    table.add_column("")
    table.add_column("value [interval]", justify="right")
    for metric in finding.metrics:
        table.add_row(Text(metric.name.replace("_", " ")), Text(str(metric)))
    return table
