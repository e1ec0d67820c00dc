"""Claims that are arithmetic: minima that are divergences, and the jailbreak bound."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from trueline import divergences as dv
from trueline.evaluation.bound import Zone, concentrated, jailbreak_bound
from trueline.logprobs import CompletionLogProbs, PairedLogProbs, UnpairedLogProbs
from trueline.objectives import bind
from trueline.reproduce.runs import Run, Values, experiment

DRAWS = 20
"""Atoms are drawn in proportions of 1/20, so that a batch of 20 turns means into exact sums."""

SHIFT = 0.7


@experiment("minima", version=2)
def minima(run: Run, folder: Path, parents: Sequence[Path]) -> Values:
    """For distributions drawn at random: each objective's minimum minus its divergence."""
    rng = np.random.default_rng(run.seed)
    p, q = (1 + rng.multinomial(DRAWS - 5, rng.dirichlet(np.ones(5))) for _ in range(2))
    counts = torch.from_numpy(p), torch.from_numpy(q)
    good, bad = (c.double() / DRAWS for c in counts)
    product, swapped = torch.outer(good, bad), torch.outer(bad, good)
    infima = {
        "bco": math.log(4) - 2 * dv.js(good, bad).item(),
        "kldo": -dv.kl(good, bad).item(),
        "kldo_nwj": -dv.kl(good, bad).item(),
        "hdo": 2 - dv.hellinger2(good, bad).item(),
        "reverse_kl": -dv.reverse_kl(good, bad).item(),
        "chi2": -dv.chi2(good, bad).item(),
    }
    found = {
        name: _minimum(_labeled_loss(name, *counts)) - infimum for name, infimum in infima.items()
    }
    dpo = math.log(2) - dv.js(product.flatten(), swapped.flatten()).item()
    found["dpo"] = _minimum(_paired_loss(*counts)) - dpo
    step = 40 * (good / bad).log().sign()  # KTO's infimum is approached as rewards run off
    tv = 1 - dv.tv(good, bad).item()
    found["kto"] = _labeled_loss("kto", *counts)(step).item() - tv
    return found


def _scores(values: Tensor) -> CompletionLogProbs:
    length = torch.ones(len(values), dtype=torch.long)
    return CompletionLogProbs(values, length, torch.zeros_like(values))


def _labeled_loss(name: str, p: Tensor, q: Tensor) -> Callable[[Tensor], Tensor]:
    """E+ + E- of an objective as a function of the atoms' log-ratios."""
    atoms = torch.arange(len(p))
    order = torch.cat([atoms.repeat_interleave(p), atoms.repeat_interleave(q)])
    desirable = torch.arange(2 * DRAWS) < DRAWS
    objective = bind(name, {"beta": 1.0})
    statistics = {"shift": torch.tensor(SHIFT)} if name == "bco" else {}

    def loss(r: Tensor) -> Tensor:
        losses = objective.losses(UnpairedLogProbs(_scores(r[order]), desirable), **statistics)
        # one loss a completion averages over both classes, which are equally many: twice its mean
        return losses if losses.dim() == 0 else 2 * losses.mean()

    return loss


def _paired_loss(p: Tensor, q: Tensor) -> Callable[[Tensor], Tensor]:
    """DPO's mean over all pairs of an atom of D+ and one of D-."""
    atoms = torch.arange(len(p))
    chosen, rejected = torch.meshgrid(
        atoms.repeat_interleave(p), atoms.repeat_interleave(q), indexing="ij"
    )
    objective = bind("dpo", {"beta": 1.0})

    def loss(r: Tensor) -> Tensor:
        pairs = PairedLogProbs(_scores(r[chosen.flatten()]), _scores(r[rejected.flatten()]))
        return objective.losses(pairs).mean()

    return loss


def _minimum(loss: Callable[[Tensor], Tensor]) -> float:
    return loss(minimize(loss, 5)).item()


def minimize(loss: Callable[[Tensor], Tensor], size: int) -> Tensor:
    """(size,) where a loss is smallest, by L-BFGS in float64 from zeros."""
    r = torch.zeros(size, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [r], max_iter=200, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure() -> float:
        optimizer.zero_grad()
        value = loss(r)
        value.backward()
        return value.item()

    optimizer.step(closure)
    return r.detach()


ZONES = (Zone(60, 6, 0.15), Zone(1000, 110, 0.1, 0.02), Zone(1000, 90, 0.1, 0.02),
         Zone(200, 20, 0.1, 0.05))  # fmt: skip
LEANINGS = (0.0, 0.01, 0.1, 0.5, 2.0)


@experiment("bound")
def bound(run: Run, folder: Path, parents: Sequence[Path]) -> Values:
    """The jailbreak bound beside simulation, beside the truth, and where it says nothing."""
    gaps = []
    for zone in ZONES:
        drawn = zone.simulate(seed=run.seed, samples=run.options["samples"]).value
        assert drawn is not None
        gaps.append(drawn - zone.volume())
    leaning = [concentrated(zone, extra) for zone in ZONES for extra in LEANINGS]
    deep = [concentrated(zone, LEANINGS[-1]) for zone in ZONES]
    spread = [jailbreak_bound(z.n, z.harmful, z.p, z.epsilon) for z in ZONES]
    return {
        "volume, simulated minus exact": float(np.mean(gaps)),
        "true chance minus bound, smallest": min(one.truth - one.bound for one in leaning),
        "bound, spread density, largest": max(one.exact for one in spread),
        "bound, density deep in the safe zone, largest": max(one.bound for one in deep),
        "normal approximation minus exact, furthest": max(
            (one.normal - one.exact for one in spread), key=abs
        ),
    }
