"""The LM head where it counts: log-probs of targets in chunks, with a backward of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

CHUNK_ELEMENTS = 1 << 23
"""Logits held at once by the chunked head (elements, float32)."""

KEEP_ELEMENTS = 1 << 26
"""So many probabilities are kept for the backward pass (256 MiB in float32), which saves their
chunks a quarter of the head's arithmetic; those of further chunks are computed again."""


class _LinearLogProbs(torch.autograd.Function):
    """log softmax(cap(h W' + b))[target], (M,), without storing (M, V) logits where that is much.

    With the error e = softmax - 1[target] (M, V) and the upstream gradient u (M,), the backward
    pass is -u (e W) for h and -e' (u h) for W: two products, and nothing elementwise over the
    vocabulary. The first ``KEEP_ELEMENTS`` of e are kept from the forward pass, the rest computed
    again, chunk by chunk, from the saved log-sum-exp.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        softcap: float | None,
        dtype: torch.dtype,
    ) -> Tensor:
        room = KEEP_ELEMENTS if any(ctx.needs_input_grad) and softcap is None else 0
        lses, values, kept = [], [], []
        cast = weight.to(dtype)
        for rows in _chunks(len(targets), weight.shape[0]):
            logits = _logits(hidden[rows], cast, bias, softcap)
            log_probs = logits.log_softmax(-1)
            at = targets[rows, None]
            value = log_probs.gather(-1, at)
            lses.append((logits.gather(-1, at) - value)[:, 0])
            values.append(value[:, 0])
            room -= log_probs.numel()
            if room >= 0:
                kept.append(_minus_target(log_probs.exp_(), at).to(dtype))
        ctx.save_for_backward(hidden, weight, bias, targets, torch.cat(lses), *kept)
        ctx.softcap, ctx.dtype = softcap, dtype
        return torch.cat(values)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, lse, *kept = ctx.saved_tensors
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        wants_bias = bias is not None and ctx.needs_input_grad[2]
        cast = weight.to(ctx.dtype)
        total = torch.promote_types(torch.float32, weight.dtype)
        d_hidden = torch.empty_like(hidden) if wants_hidden else None
        d_weight: Tensor | None = None
        d_bias = torch.zeros_like(bias, dtype=total) if wants_bias else None
        for index, rows in enumerate(_chunks(len(targets), weight.shape[0])):
            h, u = hidden[rows].to(ctx.dtype), -upstream[rows, None]
            if index < len(kept):
                error = kept[index]
            else:
                logits = _logits(h, cast, bias, ctx.softcap)
                slope = None if ctx.softcap is None else 1 - (logits / ctx.softcap) ** 2
                error = logits.sub_(lse[rows, None]).exp_()
                error = _minus_target(error, targets[rows, None])
                error = (error if slope is None else error.mul_(slope)).to(ctx.dtype)
            if d_hidden is not None:
                d_hidden[rows] = ((error @ cast) * u).to(hidden.dtype)
            if wants_weight and d_weight is None:
                d_weight = (error.t() @ (h * u).to(ctx.dtype)).to(total)
            elif d_weight is not None:
                d_weight.add_(error.t() @ (h * u).to(ctx.dtype))
            if d_bias is not None:
                d_bias += (error.t() @ u.to(ctx.dtype))[:, 0]
        return (
            d_hidden,
            None if d_weight is None else d_weight.to(weight.dtype),
            None if d_bias is None else d_bias.to(bias.dtype),
            None,
            None,
            None,
        )


def _minus_target(probabilities: Tensor, at: Tensor) -> Tensor:
    """softmax - 1[target], in place: near 1 the difference is taken before any rounding to half."""
    return probabilities.scatter_add_(1, at, probabilities.new_full((1, 1), -1.0).expand_as(at))


def _chunks(rows: int, vocabulary: int) -> Iterator[slice]:
    step = max(1, CHUNK_ELEMENTS // vocabulary)
    for start in range(0, rows, step):
        yield slice(start, start + step)


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, softcap: float | None) -> Tensor:
    logits = F.linear(
        hidden.to(weight.dtype), weight, None if bias is None else bias.to(weight.dtype)
    )
    logits = logits.to(torch.promote_types(torch.float32, logits.dtype))
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def head_log_probs(
    head: nn.Module,
    hidden: Tensor,
    targets: Tensor,
    *,
    softcap: float | None = None,
    chunked: bool = True,
    linear: bool | None = None,
) -> Tensor:
    """(M,) log-probs of ``targets`` (M,) given ``hidden`` (M, d) through the LM head, in float32
    (float64 where the hidden states are).

    A plain linear head runs in chunks with its own backward; any other (quantized, with an
    adapter) runs as the module it is, chunk by chunk under checkpointing. With ``chunked=False``
    all logits are made and stored, the ordinary way, to measure what the chunks save. ``linear``
    says that the head is plain where its type no longer does (FSDP makes another of it).
    """
    if chunked and (type(head) is nn.Linear if linear is None else linear):
        device = hidden.device.type
        dtype = hidden.dtype
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        with torch.autocast(device, enabled=False):
            return _LinearLogProbs.apply(hidden, head.weight, head.bias, targets, softcap, dtype)

    def chunk(h: Tensor, t: Tensor) -> Tensor:
        logits = head(h)
        logits = logits.to(torch.promote_types(torch.float32, logits.dtype))
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        return logits.log_softmax(-1).gather(-1, t[:, None])[:, 0]

    if not chunked:
        return chunk(hidden, targets)
    vocabulary = getattr(head, "out_features", 1 << 15)
    pieces = [
        checkpoint(chunk, hidden[rows], targets[rows], use_reentrant=False)
        for rows in _chunks(len(targets), vocabulary)
    ]
    return torch.cat(pieces)
