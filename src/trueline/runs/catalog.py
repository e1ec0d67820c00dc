"""What there is to choose from: objectives, and what an evaluation is made of, as plain rows."""

from __future__ import annotations

from typing import Any

from trueline.objectives import find
from trueline.objectives.describe import (
    HEADINGS,
    LAYOUTS,
    catalog,
    coupling,
    describe,
    group,
    help_of,
)

__all__ = [
    "HEADINGS",
    "LAYOUTS",
    "catalog",
    "coupling",
    "describe",
    "diffusion_objectives",
    "evaluation_parts",
    "find",
    "group",
    "help_of",
]


def evaluation_parts() -> dict[str, dict[str, str]]:
    """Every registered benchmark, attack, judge and utility measure with its first sentence."""
    import trueline.reproduce.truth  # noqa: F401  (registers the sandbox's exact judge)
    from trueline.evaluation.attacks import ATTACKS
    from trueline.evaluation.benchmarks import BENCHMARKS
    from trueline.evaluation.judges import JUDGES
    from trueline.evaluation.utility import UTILITIES

    groups: dict[str, Any] = {
        "benchmarks": BENCHMARKS, "attacks": ATTACKS, "judges": JUDGES, "utilities": UTILITIES,
    }  # fmt: skip
    return {
        kind: {name: plugin.summary for name, plugin in registry.items()}
        for kind, registry in groups.items()
    }


def diffusion_objectives() -> dict[str, Any]:
    """The objectives on images, and the names of those on pairs that carry over to them."""
    from trueline.diffusion import DIFFUSION_OBJECTIVES
    from trueline.diffusion.bind import carried_over

    names = ("name", "summary", "layout", "reference", "epsilon_only", "equation", "source")
    rows = [
        {name: getattr(spec, name) for name in names} | {"options": dict(spec.options)}
        for spec in DIFFUSION_OBJECTIVES.values()
    ]
    return {"diffusion": rows, "carried_over": carried_over()}
