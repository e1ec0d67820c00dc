"""The LM head where it counts: log-probs of targets in chunks, with a backward of its own;
and the last layer only where a scored token is predicted.

No later layer reads the last one's output, so behind its keys and values only rows that predict a
scored token matter. Its row-wise modules (query and output projection, feed-forward) run on those
rows and leave zeros elsewhere; nobody reads the zeros. A module's forward method is replaced for a
while, whoever else has replaced it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
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


ATTENTION_NAMES = ("self_attn", "attn", "attention")
ROW_WISE = ("mlp", "feed_forward")
ROW_WISE_IN_ATTENTION = ("q_proj", "o_proj", "out_proj", "c_proj", "dense")


class LastLayer:
    """Restricts a decoder's last layer to the scored rows of a packed batch.

    Attaching changes nothing for ordinary calls: only a forward pass that carries a ``layout``
    is restricted. :meth:`detach` undoes it.

    Args:
        body: the decoder (a causal language model without its head).
    """

    def __init__(self, body: nn.Module) -> None:
        self._rows: Tensor | None = None
        self._patches: list[Patch] = []
        for name, module in _children(_last_layer(body)):
            if name in ROW_WISE:
                self._patches.append(Patch(module, self._restrict))
            elif name in ATTENTION_NAMES:
                self._patches.append(Patch(module, self._enter))
                for part, projection in module.named_children():
                    if part in ROW_WISE_IN_ATTENTION:
                        self._patches.append(Patch(projection, self._restrict))

    def detach(self) -> None:
        """Give the modules their own forward methods back."""
        while self._patches:
            self._patches.pop().undo()

    def _enter(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """The attention's forward, which learns the rows: it is given the layout, runs before the
        feed-forward, and runs again where gradient checkpointing computes the layer again."""

        def forward(*args: Any, **kwargs: Any) -> Any:
            layout = kwargs.get("layout")
            self._rows = None if layout is None else layout.scored
            return original(*args, **kwargs)

        return forward

    def _restrict(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """A row-wise module's forward on the rows alone: x (1, T, d) to (1, T, e)."""

        def forward(x: Tensor) -> Tensor:
            rows = self._rows
            if rows is None:
                return original(x)
            y = original(x[:, rows])
            return y.new_zeros(*x.shape[:-1], y.shape[-1]).index_copy_(1, rows, y)

        return forward


def _last_layer(body: nn.Module) -> nn.Module | None:
    count = getattr(getattr(body, "config", None), "num_hidden_layers", None)
    stacks = (m for m in body.modules() if isinstance(m, nn.ModuleList) and len(m) == count)
    stack = next(stacks, None)
    return None if stack is None else stack[-1]


def _children(layer: nn.Module | None) -> Iterator[tuple[str, nn.Module]]:
    return iter(()) if layer is None else layer.named_children()


class Patch:
    """Puts ``wrap(forward)`` in the place of a module's forward method, until :meth:`undo`.

    A patch on a patched module takes the newer one's place for a while and does not nest in it:
    two scorers on one model would otherwise restrict the same rows twice.

    Args:
        module: whose forward method is replaced.
        wrap: from the module's own forward method to what takes its place.
    """

    def __init__(self, module: nn.Module, wrap: Callable[[Any], Callable[..., Any]]) -> None:
        self.module = module
        self._previous = module.__dict__.get("forward")
        original = getattr(self._previous, "patched", None) or module.forward
        mine: Any = wrap(original)
        mine.patched = original
        self._mine = module.forward = mine

    def undo(self) -> None:
        """Bring back what was there; nothing where another has since taken this one's place."""
        if self.module.__dict__.get("forward") is not self._mine:
            return
        if self._previous is None:
            del self.module.__dict__["forward"]
        else:
            self.module.forward = self._previous
