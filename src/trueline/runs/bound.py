"""What `trueline bound` does: how likely a jailbreak must be, as arithmetic on a picture."""

from __future__ import annotations

from dataclasses import dataclass

from trueline.evaluation import jailbreak_bound
from trueline.results import Finding, to_html


@dataclass(frozen=True)
class Bounded:
    """The bound with its inputs, and whether it says nothing."""

    finding: Finding
    vacuous: bool

    def _repr_html_(self) -> str:
        return to_html([self.finding], "Bound")


def bound(
    n: int = 1000,
    harmful: int = 110,
    p: float = 0.1,
    epsilon: float = 0.02,
    *,
    ratio: float = 1.0,
    samples: int = 20_000,
    seed: int = 0,
) -> Bounded:
    """The least chance of a jailbreak by a bounded adversary: exact, approximate and simulated.

    Args:
        n: explanations in the output's support, ``harmful`` of them harmful.
        p: harmful mass from which an answer is harmful.
        epsilon: how far an adversary moves the distribution, in l1.
        ratio: the largest aligned density over the uniform one, outside the zone.
        samples: draws of the simulation; 0 for none.
        seed: of the simulation.
    """
    found = jailbreak_bound(n, harmful, p, epsilon, ratio=ratio)
    return Bounded(found.to_finding(samples=samples, seed=seed), found.vacuous)
