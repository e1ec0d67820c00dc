"""Entanglement where the theory lives: one pair, frozen features, plain gradient descent.

Chosen and rejected part in one token and share the suffix behind it. Only a softmax head learns, so
every gradient has a closed form. First the chosen alone is fitted, then DPO follows. How long the
features are, the paper leaves open.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from trueline.logprobs import CompletionLogProbs, PairedLogProbs
from trueline.objectives import coefficients, dpo
from trueline.objectives.weighting import normalized
from trueline.reproduce.runs import Run, Values, experiment

VOCABULARY, WIDTH, CORRELATION, LENGTH = 30, 16, 0.95, 1.5
WARM_UP, STEPS, RATE, BETA = 20, 200, 0.2, 0.1


@dataclass(frozen=True)
class Pair:
    """(n, d) features and (n,) tokens of a chosen and a rejected completion."""

    features: tuple[Tensor, Tensor]
    tokens: tuple[Tensor, Tensor]

    def log_probs(self, head: Tensor) -> Tensor:
        """(2,) log-probs of chosen and rejected, nats."""
        sides = zip(self.features, self.tokens, strict=True)
        rows = [(h @ head.T).log_softmax(-1).gather(-1, y[:, None]).sum() for h, y in sides]
        return torch.stack(rows)

    def gradients(self, head: Tensor) -> list[Tensor]:
        """Both log-probs' gradients in the head: sum over tokens of (1[y] - softmax) h'."""
        return [
            (F.one_hot(y, VOCABULARY) - (h @ head.T).softmax(-1)).T @ h
            for h, y in zip(self.features, self.tokens, strict=True)
        ]


@experiment("toy", version=2)
def toy(run: Run, folder: Path, parents: Sequence[Path]) -> Values:
    """Options: ``suffix``, how many tokens are shared, and ``normalize``."""
    pair = make_pair(run.options["suffix"], run.seed)
    return train(pair, normalize=run.options.get("normalize", False))


def train(pair: Pair, *, normalize: bool) -> dict[str, float]:
    """Warm up on the chosen, then DPO by gradient descent, its two pushes balanced or not."""
    head = torch.zeros(VOCABULARY, WIDTH, dtype=torch.float64)
    for _ in range(WARM_UP):
        head += RATE * pair.gradients(head)[0]
    start = pair.log_probs(head)
    w, l = pair.gradients(head)  # noqa: E741
    cosine = float((w * l).sum() / (w.norm() * l.norm()))
    for _ in range(STEPS):
        w, l = pair.gradients(head)  # noqa: E741
        _, pull = coefficients(lambda policy: _loss(policy, start), pair.log_probs(head))
        if normalize:
            pull = normalized(pull, torch.stack([w.norm(), l.norm()]))
        head -= RATE * (pull[0] * w + pull[1] * l)
    chosen, rejected = (pair.log_probs(head) - start).tolist()
    return {"cosine": cosine, "chosen change": chosen, "rejected change": rejected}


def make_pair(suffix: int, seed: int) -> Pair:
    """One contrasting token in one context, then shared tokens in similar contexts."""
    g = torch.Generator().manual_seed(seed)
    noise = torch.randn(2, suffix + 1, WIDTH, generator=g, dtype=torch.float64)
    first, other = F.normalize(noise, dim=-1)
    second = F.normalize(CORRELATION * first + (1 - CORRELATION**2) ** 0.5 * other, dim=-1)
    second[0] = first[0]  # until they part, the contexts are one
    order = torch.randperm(VOCABULARY, generator=g)
    shared = order[2 : 2 + suffix]
    tokens = (torch.cat([order[:1], shared]), torch.cat([order[1:2], shared]))
    return Pair((LENGTH * first, LENGTH * second), tokens)


def _loss(policy: Tensor, reference: Tensor) -> Tensor:
    one = torch.ones(1, dtype=torch.long)
    sides = (CompletionLogProbs(policy[i : i + 1], one, reference[i : i + 1]) for i in (0, 1))
    return dpo(PairedLogProbs(*sides), beta=BETA).sum()
