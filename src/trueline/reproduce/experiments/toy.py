"""Entanglement where the theory lives: one pair, frozen features, plain gradient descent.

Chosen and rejected part in one token and share the suffix behind it. Only a softmax head learns, so
every gradient has a closed form. First the chosen alone is fitted, then DPO follows. How long the
features are, the paper leaves open.
"""

from __future__ import annotations

import itertools
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


@experiment("toy", version=3)
def toy(run: Run, folder: Path, parents: Sequence[Path]) -> Values:
    """Options: ``suffix``, how many tokens are shared, ``normalize``, ``faint`` (by how much the
    rejected's features are shorter than the chosen's, behind the token in which they part) and
    ``warm_up`` (steps on the chosen)."""
    given = run.options
    pair = make_pair(given["suffix"], run.seed, faint=given.get("faint", 1.0))
    warm_up = given.get("warm_up", WARM_UP)
    return train(pair, normalize=given.get("normalize", False), warm_up=warm_up)


SUFFIXES, FAINT, WARM_UPS = (0, 1, 3, 7, 15), (1.0, 0.5, 0.25), (0, WARM_UP)


@experiment("condition")
def condition(run: Run, folder: Path, parents: Sequence[Path]) -> Values:
    """One tiny step of DPO on pairs of every kind: did each side move as the inner product says?

    Chosen rises iff I <= |g_w|^2, rejected falls iff I <= |g_l|^2 (both pushes are equal).
    """
    right, kinds = [], set()
    for suffix, faint, steps in itertools.product(SUFFIXES, FAINT, WARM_UPS):
        pair = make_pair(suffix, run.seed, faint=faint)
        head = warmed(pair, steps)
        before = pair.log_probs(head)
        w, l = pair.gradients(head)  # noqa: E741
        inner = (w * l).sum()
        rises, falls = bool(inner <= (w * w).sum()), bool(inner <= (l * l).sum())
        moved = pair.log_probs(head + 1e-6 * (w - l)) - before
        right += [bool(moved[0] >= 0) == rises, bool(moved[1] <= 0) == falls]
        kinds.add((rises, falls))
    return {"foretold right": sum(right) / len(right), "cases met": float(len(kinds))}


def warmed(pair: Pair, steps: int) -> Tensor:
    """A head that has been fitted to the chosen for so many steps."""
    head = torch.zeros(VOCABULARY, WIDTH, dtype=torch.float64)
    for _ in range(steps):
        head += RATE * pair.gradients(head)[0]
    return head


def train(pair: Pair, *, normalize: bool, warm_up: int = WARM_UP) -> dict[str, float]:
    """Warm up on the chosen, then DPO by gradient descent, its two pushes balanced or not."""
    head = warmed(pair, warm_up)
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
    return {"cosine": cosine, "chosen change": chosen, "rejected change": rejected,
            "margin": chosen - rejected}  # fmt: skip


def make_pair(suffix: int, seed: int, *, faint: float = 1.0) -> Pair:
    """One contrasting token in one context, then shared tokens in similar contexts."""
    g = torch.Generator().manual_seed(seed)
    noise = torch.randn(2, suffix + 1, WIDTH, generator=g, dtype=torch.float64)
    first, other = F.normalize(noise, dim=-1)
    second = F.normalize(CORRELATION * first + (1 - CORRELATION**2) ** 0.5 * other, dim=-1)
    second[0] = first[0]  # until they part, the contexts are one
    second[1:] *= faint
    order = torch.randperm(VOCABULARY, generator=g)
    shared = order[2 : 2 + suffix]
    tokens = (torch.cat([order[:1], shared]), torch.cat([order[1:2], shared]))
    return Pair((LENGTH * first, LENGTH * second), tokens)


def _loss(policy: Tensor, reference: Tensor) -> Tensor:
    one = torch.ones(1, dtype=torch.long)
    sides = (CompletionLogProbs(policy[i : i + 1], one, reference[i : i + 1]) for i in (0, 1))
    return dpo(PairedLogProbs(*sides), beta=BETA).sum()
