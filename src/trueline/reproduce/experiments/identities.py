"""Claims that are identities: RLHF as imitation, losses as its cases, scores as gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from trueline.diffusion.models.predictions import PairedPredictions, Predictions
from trueline.diffusion.objectives import dspo, preference_weight
from trueline.evaluation.mimicry import reference_optimum
from trueline.logprobs import CompletionLogProbs, PairedLogProbs, UnpairedLogProbs
from trueline.objectives import bind
from trueline.reproduce.experiments.theory import minimize
from trueline.reproduce.runs import Run, Values, experiment

PAIRS = 16


@experiment("imitation")
def imitation(run: Run, folder: Path, parents: Sequence[Path]) -> Values:
    """RLHF's optimum under the reward ln(chosen / reference), found numerically, beside the
    distribution of the chosen; and preference losses beside the imitation losses they should be."""
    rng = np.random.default_rng(run.seed)
    reference, chosen = (torch.from_numpy(rng.dirichlet(np.ones(6))) for _ in range(2))
    reward = (chosen / reference).log()

    def minus_rlhf(logits: Tensor) -> Tensor:
        log_policy = logits.log_softmax(-1)
        policy = log_policy.exp()
        return -(policy * reward).sum() + (policy * (log_policy - reference.log())).sum()

    optimum = minimize(minus_rlhf, 6).softmax(-1)
    some = torch.from_numpy(rng.dirichlet(np.ones(6)))
    imitated = (some * (some / chosen).log()).sum()
    u, v = (torch.from_numpy(rng.normal(size=PAIRS)) for _ in range(2))
    return {
        "RLHF's optimum minus the chosen's distribution": _furthest(optimum - chosen),
        "RLHF's objective minus its KL from the chosen": float(
            minus_rlhf(some.log()) - imitated
        ),
        "DPO minus contrastive imitation": _furthest(
            _paired("dpo", u, v, beta=0.3) - _paired("dil_cpc", u, v, beta=0.3, reduction="sum")
        ),
        "BCO minus imitation by classification": float(
            _labeled("bco", u, v, shift=torch.tensor(0.0)) - _imitated("dil_bce", u, v)
        ),
        "KLDO by NWJ minus imitation by unnormalized KL": float(
            _labeled("kldo_nwj", u + 1, v + 1) + 1 - _imitated("dil_ukl", u, v)
        ),
    }  # fmt: skip


def _furthest(difference: Tensor) -> float:
    return float(difference.flatten()[difference.abs().argmax()])


def _scores(values: Tensor) -> CompletionLogProbs:
    length = torch.ones(len(values), dtype=torch.long)
    return CompletionLogProbs(values, length, torch.zeros_like(values))


def _paired(name: str, u: Tensor, v: Tensor, **options: object) -> Tensor:
    return bind(name, options).losses(PairedLogProbs(_scores(u), _scores(v)))


def _imitated(name: str, u: Tensor, v: Tensor) -> Tensor:
    return _paired(name, u, v, reduction="sum").mean()


def _labeled(name: str, u: Tensor, v: Tensor, **statistics: Tensor) -> Tensor:
    """E+ + E- of an objective on labeled answers."""
    desirable = torch.arange(2 * PAIRS) < PAIRS
    batch = UnpairedLogProbs(_scores(torch.cat([u, v])), desirable)
    losses = bind(name, {"beta": 1.0}).losses(batch, **statistics)
    return losses if losses.dim() == 0 else 2 * losses.mean()


@experiment("scores")
def scores(run: Run, folder: Path, parents: Sequence[Path]) -> Values:
    """DSPO's correction beside the gradient of the log-chance that the chosen is preferred; and
    the score of reinforcement learning's optimum beside data score plus such a gradient."""
    g = torch.Generator().manual_seed(run.seed)
    e_w, r_w, e_l, r_l, noise = (
        torch.randn(PAIRS, 1, generator=g, dtype=torch.float64) for _ in range(5)
    )
    beta = 0.4

    def pairs(noise_w: Tensor) -> PairedPredictions:
        return PairedPredictions(Predictions(e_w, noise_w, r_w), Predictions(e_l, noise, r_l))

    noise_w = noise.clone().requires_grad_()
    log_preferred = torch.nn.functional.logsigmoid(beta * pairs(noise_w).margin).sum()
    (gradient,) = torch.autograd.grad(log_preferred, noise_w)
    found = pairs(noise)
    weight = beta * preference_weight(found, beta)[:, None]
    loss = (e_w - noise - gradient).square().mean(1)
    return {
        "DSPO's correction minus the preference's gradient": _furthest(
            weight * found.chosen.drift - gradient
        ),
        "DSPO's loss minus matching that score": _furthest(dspo(found, beta=beta) - loss),
        "score of RL's optimum minus data's plus preference's": _reinforced(),
    }


def _reinforced(points: int = 401) -> float:
    """On a line: data N(0, 1), preferred with chance s(2 x - x^3 / 4)."""
    x = np.linspace(-4, 4, points)
    data = np.exp(-(x**2) / 2)
    data /= data.sum()
    log_preferred = -np.log1p(np.exp(-(2 * x - x**3 / 4)))
    optimum = reference_optimum(data.tolist(), log_preferred.tolist(), 1.0)
    slope: Callable[[np.ndarray], np.ndarray] = lambda values: np.gradient(values, x)  # noqa: E731
    gap = slope(np.log(optimum)) - slope(np.log(data)) - slope(log_preferred)
    return float(gap[np.abs(gap).argmax()])
