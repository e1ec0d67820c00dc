"""Log-probabilities of completions, exact and without waste.

The fast path runs a packed row through the model: each prompt once, no padding, attention segment
by segment, and the LM head only where a scored token is predicted, in chunks whose logits are
never stored. The plain path is one padded row a completion. They agree to rounding;
:func:`verify` checks that on the model at hand, and :class:`Scorer` falls back to the
plain path, saying so, where they do not.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from trueline.batching import Branch, Layout, PackedBatch, TokenTree, pack
from trueline.prompts import pad

log = logging.getLogger(__name__)

ATTENTION = "trueline"
CHUNK_ELEMENTS = 1 << 23
"""Logits held at once by the chunked head (elements, float32)."""

KEEP_ELEMENTS = 1 << 26
"""Up to so many probabilities are kept for the backward pass (256 MiB): a third less arithmetic in
the head. Beyond it they are computed again."""


# --- attention over a packed row -----------------------------------------------------------------


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    layout: Layout | None = None,
    softcap: float | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention within each segment of a packed row; plain attention where there is no layout.

    Registered with transformers under the name ``"trueline"``. Shapes are transformers' own:
    query (1, heads, T, d), key and value (1, kv_heads, T, d); returns (1, T, heads, d).
    """
    if layout is None:
        if softcap is None:
            return sdpa_attention_forward(
                module, query, key, value, attention_mask, dropout, scaling, **kwargs
            )
        groups = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
        causal = attention_mask
        if causal is None:
            causal = torch.ones(
                query.shape[2], key.shape[2], dtype=torch.bool, device=query.device
            ).tril(key.shape[2] - query.shape[2])
        out = _softcapped(query, key, value, causal, dropout, scaling, softcap)
        return out.transpose(1, 2).contiguous(), None
    if kwargs.get("s_aux") is not None or kwargs.get("position_bias") is not None:
        raise NotImplementedError("attention sinks and position biases take the plain path")
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    parts = zip(*(x.split(layout.sizes, dim=2) for x in (query, key, value)), strict=True)
    outputs = []
    for index, (q, k, v) in enumerate(parts):
        mask = layout.mask(index, sliding_window, q.device)
        if softcap is not None:
            if mask is None:
                mask = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool, device=q.device).tril()
            outputs.append(_softcapped(q, k, v, mask, dropout, scaling, softcap))
        else:
            outputs.append(
                F.scaled_dot_product_attention(
                    q,
                    k,
                    v,
                    attn_mask=mask,
                    dropout_p=dropout,
                    scale=scaling,
                    is_causal=mask is None,
                )
            )
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def _softcapped(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, dropout: float, scale: float | None, cap: float
) -> Tensor:
    """Attention with logits squashed to cap * tanh(logits / cap), as Gemma 2 has it."""
    scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    scores = cap * torch.tanh(scores / cap)
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    weights = F.softmax(scores, dim=-1, dtype=torch.promote_types(torch.float32, q.dtype))
    return F.dropout(weights.to(q.dtype), dropout) @ v


AttentionInterface.register(ATTENTION, packed_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


# --- the LM head, in chunks ----------------------------------------------------------------------


class _LinearLogProbs(torch.autograd.Function):
    """log softmax(cap(h W' + b))[target], (M,), without storing (M, V) logits where that is much.

    The backward pass takes d logit = (1[target] - softmax) * upstream. The softmax is kept from
    the forward pass up to ``KEEP_ELEMENTS``, and beyond that computed again, chunk by chunk, from
    the saved log-sum-exp.
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
        keep = len(targets) * weight.shape[0] <= KEEP_ELEMENTS and softcap is None
        keep = keep and any(ctx.needs_input_grad)
        lses, values, kept = [], [], []
        cast = weight.to(dtype)
        for rows in _chunks(len(targets), weight.shape[0]):
            logits = _logits(hidden[rows], cast, bias, softcap)
            lse = logits.logsumexp(-1)
            values.append(logits.gather(-1, targets[rows, None])[:, 0] - lse)
            lses.append(lse)
            if keep:
                kept.append(logits.sub_(lse[:, None]).exp_())
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
            h = hidden[rows].to(ctx.dtype)
            slope = None
            if kept:
                d = kept[index] * -upstream[rows, None]
            else:
                d = _logits(h, cast, bias, ctx.softcap)
                slope = None if ctx.softcap is None else 1 - (d / ctx.softcap) ** 2
                d = d.sub_(lse[rows, None]).exp_().mul_(-upstream[rows, None])
            d.scatter_add_(1, targets[rows, None], upstream[rows, None].to(d.dtype))
            d = (d if slope is None else d * slope).to(ctx.dtype)
            if d_hidden is not None:
                d_hidden[rows] = (d @ cast).to(hidden.dtype)
            if wants_weight and d_weight is None:
                d_weight = (d.t() @ h).to(total)
            elif d_weight is not None:
                d_weight.add_(d.t() @ h)
            if d_bias is not None:
                d_bias += d.sum(0)
        return (
            d_hidden,
            None if d_weight is None else d_weight.to(weight.dtype),
            None if d_bias is None else d_bias.to(bias.dtype),
            None,
            None,
            None,
        )


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
    head: nn.Module, hidden: Tensor, targets: Tensor, *, softcap: float | None = None
) -> Tensor:
    """(M,) log-probs of ``targets`` (M,) given ``hidden`` (M, d) through the LM head, in float32
    (float64 where the hidden states are).

    A plain linear head runs in chunks with its own backward; any other (quantized, with an
    adapter) runs as the module it is, chunk by chunk under checkpointing.
    """
    if type(head) is nn.Linear:
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

    vocabulary = getattr(head, "out_features", 1 << 15)
    pieces = [
        torch.utils.checkpoint.checkpoint(chunk, hidden[rows], targets[rows], use_reentrant=False)
        for rows in _chunks(len(targets), vocabulary)
    ]
    return torch.cat(pieces)


# --- the scorer ----------------------------------------------------------------------------------


def plain_log_probs(model: nn.Module, batch: PackedBatch, trees: Sequence[TokenTree]) -> Tensor:
    """(M,) per-token log-probs the ordinary way: one right-padded row a completion, all logits.

    The truth the fast path is held against, and the path of architectures that fail the check.
    """
    rows = [[*t.prompt.tolist(), *b.ids.tolist()] for t in trees for b in t.branches]
    ids, mask = pad(rows, fill=0, left=False)
    device = batch.input_ids.device
    logits = model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False).logits
    pieces = []
    flat = ((t, b) for t in trees for b in t.branches)
    for i, (tree, branch) in enumerate(flat):
        scored = np.flatnonzero(branch.mask) + len(tree.prompt)
        at = torch.from_numpy(scored[scored > 0]).to(device)
        row_logits = logits[i, at - 1]
        row_logits = row_logits.to(torch.promote_types(torch.float32, row_logits.dtype))
        target = ids[i].to(device)[at]
        pieces.append(row_logits.log_softmax(-1).gather(-1, target[:, None])[:, 0])
    return torch.cat(pieces)


class Scorer:
    """Scores token trees under a model: ``scorer(trees)`` gives per-token log-probs.

    Attaching it teaches ``model(packed=batch)`` to return the (M,) log-probs of a packed batch, so
    that wrappers around the model (DDP, FSDP, PEFT) keep their hooks. :meth:`detach` undoes it.

    Args:
        model: a Hugging Face causal language model, or a PEFT model around one.
        share: share prompts between completions (exact; off only to measure it).
        check: compare the fast with the plain path on a few made-up rows first, and take the
            plain path, with a warning, where they differ.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> config = LlamaConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        ...                      intermediate_size=16, vocab_size=32)
        >>> scorer = Scorer(LlamaForCausalLM(config).eval())
        >>> scorer.fast
        True
    """

    def __init__(self, model: nn.Module, *, share: bool = True, check: bool = True) -> None:
        self.model = model
        self.share = share
        self.core = _causal_lm(model)
        self.fast = True
        self._attach()
        if check:
            reason = verify(self)
            if reason is not None:
                self.detach()
                self.fast = False
                log.warning(
                    "%s takes the plain scoring path (padded rows, no shared prompts): %s",
                    type(self.core).__name__,
                    reason,
                )

    def _attach(self) -> None:
        core = self.core
        self._attention = core.config._attn_implementation
        core.set_attn_implementation(ATTENTION)
        original: Callable[..., Any] = core.forward

        def forward(*args: Any, packed: PackedBatch | None = None, **kwargs: Any) -> Any:
            return original(*args, **kwargs) if packed is None else packed_log_probs(core, packed)

        core.forward = forward

    def detach(self) -> None:
        """Give the model its own forward method and attention back."""
        self.core.__dict__.pop("forward", None)
        self.core.set_attn_implementation(self._attention)

    def pack(self, trees: Sequence[TokenTree]) -> PackedBatch:
        """The packed batch of these trees on the model's device."""
        return pack(trees, share=self.share).to(_device(self.core))

    def __call__(
        self, trees: Sequence[TokenTree], batch: PackedBatch | None = None, *, through: Any = None
    ) -> Tensor:
        """(M,) per-token log-probs, nats; ``batch.sums`` gives a completion's.

        ``through`` is the wrapper to call (a DDP or FSDP module) where it is not the model itself.
        """
        batch = self.pack(trees) if batch is None else batch
        model = self.model if through is None else through
        if self.fast:
            return model(packed=batch)
        return plain_log_probs(model, batch, trees)


def packed_log_probs(core: Any, batch: PackedBatch) -> Tensor:
    """(M,) per-token log-probs of a packed batch: body once, head where it counts."""
    body = getattr(core, core.base_model_prefix)
    hidden = body(
        input_ids=batch.input_ids,
        position_ids=batch.position_ids,
        layout=batch.layout,
        use_cache=False,
    ).last_hidden_state[0]
    text_config = core.config.get_text_config()
    return head_log_probs(
        core.get_output_embeddings(),
        hidden[batch.predictors],
        batch.targets,
        softcap=getattr(text_config, "final_logit_softcapping", None),
    )


def _causal_lm(model: nn.Module) -> Any:
    """The transformers model inside whatever wraps it."""
    while True:
        inner = getattr(model, "module", None) or getattr(model, "_orig_mod", None)
        if inner is None and hasattr(model, "peft_config"):
            inner = getattr(model.base_model, "model", None)
        if inner is None:
            return model
        model = inner


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def verify(scorer: Scorer, *, seed: int = 0) -> str | None:
    """Whether fast and plain path agree on a few made-up trees; None, or how they disagree."""
    rng = np.random.default_rng(seed)
    vocabulary = scorer.core.config.get_text_config().vocab_size

    def ids(n: int) -> np.ndarray[Any, np.dtype[np.int32]]:
        return rng.integers(min(3, vocabulary - 1), min(vocabulary, 1000), n).astype(np.int32)

    def branch(n: int) -> Branch:
        return Branch(ids(n), np.ones(n, dtype=np.bool_))

    trees = [
        TokenTree(ids(7), (branch(5), branch(9)), (True, False)),
        TokenTree(ids(3), (branch(1), branch(4)), (True, False)),
    ]
    batch = scorer.pack(trees)
    with torch.no_grad(), evaluating(scorer.model):
        try:
            fast = scorer(trees, batch)
        except (NotImplementedError, TypeError, AttributeError, RuntimeError, ValueError) as error:
            return f"the packed forward failed ({type(error).__name__}: {error})"
        plain = plain_log_probs(scorer.model, batch, trees)
    tolerance = 1e-3 if plain.dtype == torch.float64 or _is_float32(scorer.core) else 0.15
    difference = (fast - plain).abs().max().item()
    if not difference <= tolerance:
        return f"packed and padded log-probs differ by {difference:.3g} nats"
    return None


def _is_float32(model: nn.Module) -> bool:
    return all(p.dtype in (torch.float32, torch.float64) for p in model.parameters())


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Dropout off inside, the training mode back afterwards."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
