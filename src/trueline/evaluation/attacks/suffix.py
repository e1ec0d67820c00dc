"""What a suffix search is made of: a gap in a prompt, the target's loss, the next candidates."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trueline.errors import UserError
from trueline.evaluation.backends.base import Request
from trueline.prompts import Renderer
from trueline.records import Text

SLOT = "SUFFIXGOESHERE"
"""Stands in a request where the suffix goes."""


@dataclass(frozen=True, slots=True)
class Budget:
    """How far the search goes.

    Args:
        steps: at most so many.
        candidates: suffixes scored in a step.
        top_k: swaps considered at each position.
        batch_size: candidates in a forward pass.
        check_every: steps between looks at whether the attack works, where that takes answers.
    """

    steps: int = 250
    candidates: int = 512
    top_k: int = 256
    batch_size: int = 64
    check_every: int = 10

    def __post_init__(self) -> None:
        for name in ("steps", "candidates", "top_k", "batch_size", "check_every"):
            if getattr(self, name) < 1:
                raise UserError(f"gcg: {name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class Gap:
    """A prompt with a gap: token ids before it, after it, and of the target."""

    renderer: Renderer
    prompt: Text
    head: str
    tail: str
    before: list[int]
    after: list[int]
    target: list[int]
    start: list[int]

    def row(self, suffix: Sequence[int]) -> list[int]:
        return [*self.before, *suffix, *self.after, *self.target]

    def text(self, suffix: Sequence[int]) -> str:
        return self.renderer.decode(suffix).strip()

    def survives(self, suffix: Sequence[int]) -> bool:
        """Whether the prompt, written out, encodes to these very tokens."""
        text = self.text(suffix)
        whole = self.renderer.control.encode(self.head + text + self.tail)
        return self.renderer.begin(self.prompt, whole) == [*self.before, *suffix, *self.after]


def open_gap(tokenizer: Any, request: Request, target: str, length: int) -> Gap:
    renderer = Renderer(tokenizer)
    mark, raw = renderer.control.mark, renderer.control.encode

    def encode(text: str) -> list[int]:
        return renderer.begin(request.prompt, raw(text))

    text = renderer.text(request.prompt) + mark(request.prefill)
    if text.count(SLOT) != 1:
        raise UserError(
            f"gcg: the chat template writes the request {text.count(SLOT)} times; it must keep it "
            "as it is, once"
        )
    head, tail = text.split(SLOT)
    filled = head + " ".join("!" * length) + tail
    whole = encode(filled)
    before = _common(whole, encode(head))
    after = _common(whole[before:][::-1], (raw(tail) if tail else [])[::-1])
    goal = renderer.continuation(filled, raw(filled), mark(target)).ids
    end = len(whole) - after
    return Gap(
        renderer, request.prompt, head, tail, whole[:before], whole[end:], goal, whole[before:end]
    )


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many items two lists share at their beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y),
                min(len(a), len(b)))  # fmt: skip


def allowed_tokens(tokenizer: Any, size: int, device: Any) -> Tensor:
    """(V,) bool: printable ASCII tokens that are no control tokens."""
    special = set(tokenizer.all_special_ids) | {
        i for i, token in getattr(tokenizer, "added_tokens_decoder", {}).items() if token.special
    }
    mask = torch.zeros(size, dtype=torch.bool)
    texts = tokenizer.batch_decode([[i] for i in range(min(size, len(tokenizer)))])
    for i, text in enumerate(texts):
        mask[i] = i not in special and text.isascii() and text.isprintable() and bool(text.strip())
    return mask.to(device)


def _target_log_probs(model: Any, gap: Gap, **inputs: Tensor) -> Tensor:
    """(B, T, V) log-probs at the target's places."""
    keep = len(gap.target) + 1
    logits = model(**inputs, use_cache=False, logits_to_keep=keep).logits[:, -keep:-1]
    return logits.to(torch.promote_types(torch.float32, logits.dtype)).log_softmax(-1)


def _goal(gap: Gap, device: Any) -> Tensor:
    return torch.tensor(gap.target, device=device)


@torch.no_grad()
def losses_of(model: Any, gap: Gap, pool: Sequence[Sequence[int]], size: int) -> Tensor:
    """(N,) mean NLL of the target after each suffix. All suffixes are of one length: no padding."""
    rows = torch.tensor([gap.row(suffix) for suffix in pool])
    goal = _goal(gap, model.device)
    found = []
    for part in rows.split(size):
        log_probs = _target_log_probs(model, gap, input_ids=part.to(model.device))
        places = goal.expand(len(part), -1)[..., None]
        found.append(-log_probs.gather(-1, places)[..., 0].mean(-1))
    return torch.cat(found)


@torch.no_grad()
def gives_target(model: Any, gap: Gap, suffix: Sequence[int]) -> bool:
    row = torch.tensor([gap.row(suffix)], device=model.device)
    best = _target_log_probs(model, gap, input_ids=row)[0].argmax(-1)
    return bool((best == _goal(gap, model.device)).all())


def token_gradient(model: Any, gap: Gap, suffix: Sequence[int]) -> Tensor:
    """(L, V) derivative of the loss in the one-hot choice of each suffix token.

    The embedding is linear in the one-hot vector, so this is the derivative in the embedding
    times the embedding matrix; no one-hot matrix is made.
    """
    row = torch.tensor([gap.row(suffix)], device=model.device)
    embedding = model.get_input_embeddings()
    embedded = embedding(row).detach().requires_grad_()
    log_probs = _target_log_probs(model, gap, inputs_embeds=embedded)[0]
    loss = -log_probs.gather(-1, _goal(gap, model.device)[:, None]).mean()
    (slope,) = torch.autograd.grad(loss, embedded)
    start = len(gap.before)
    inner = slope[0, start : start + len(suffix)]
    return inner.float() @ embedding.weight.detach().float().T


def candidates_near(
    model: Any, gap: Gap, current: Sequence[int], allowed: Tensor, budget: Budget,
    rng: random.Random,
) -> list[list[int]]:  # fmt: skip
    """Distinct suffixes one swap away that survive as text."""
    slope = token_gradient(model, gap, current).masked_fill(~allowed, torch.inf)
    width = min(budget.top_k, int(allowed.sum()))
    swaps = (-slope).topk(width, dim=-1).indices.tolist()
    seen = {tuple(current)}
    pool = []
    for n in range(budget.candidates):
        at = n * len(current) // budget.candidates  # every position its share
        suffix = list(current)
        suffix[at] = rng.choice(swaps[at])
        if tuple(suffix) not in seen:
            seen.add(tuple(suffix))
            if gap.survives(suffix):
                pool.append(suffix)
    return pool
