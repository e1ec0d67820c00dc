"""`trueline compare --power BEFORE AFTER`: how many prompts it takes, said before any run."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from trueline.cli.common import out, print_json


def show_power(
    rates: tuple[float, float], n: int | None, correlation: float, level: float, json: bool
) -> None:
    """How likely a change shows with ``n`` prompts, and how many show it often enough."""
    from trueline.stats import needed_n, paired_power, unpaired_power

    before, after = rates
    alpha = 1 - level

    def paired(size: int) -> float:
        return paired_power(before, after, size, correlation=correlation, alpha=alpha)

    def unpaired(size: int) -> float:
        return unpaired_power(before, after, size, alpha=alpha)

    designs = {"same prompts (McNemar)": paired, "other prompts": unpaired}
    facts: dict[str, Any] = {"before": before, "after": after, "alpha": round(alpha, 12)}
    facts |= {"correlation": correlation, "n": n, "designs": {}}
    table = Table(title=f"{before:.1%} against {after:.1%}", title_justify="left")
    table.add_column("design")
    for target in (0.8, 0.9, 0.95):
        table.add_column(f"n for {target:.0%}", justify="right")
    if n is not None:
        table.add_column(f"power at n = {n}", justify="right")
    for name, of in designs.items():
        needed = {str(target): needed_n(of, target) for target in (0.8, 0.9, 0.95)}
        reached = None if n is None else of(n)
        facts["designs"][name] = {"needed_n": needed, "power": reached}
        cells = [f"{count:,}" for count in needed.values()]
        table.add_row(name, *cells, *([] if reached is None else [f"{reached:.3f}"]))
    print_json(facts) if json else out.print(table)
