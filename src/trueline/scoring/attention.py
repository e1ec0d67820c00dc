"""Attention over a packed row: each segment by itself, through transformers' own interface."""

from __future__ import annotations

import functools
import logging
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from trueline.batching import Layout, Segment, causal_mask

log = logging.getLogger(__name__)

ATTENTION = "trueline"
"""The layout says who sees whom. A packed row comes with an empty four-dimensional mask beside it,
which transformers hands on as it is: given none, it would see the packing from the positions and
build a mask of the whole row, quadratic in its length, for nobody."""


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
            causal = causal_mask(query.shape[2], key.shape[2], device=query.device)
        out = _softcapped(query, key, value, causal, dropout, scaling, softcap)
        return out.transpose(1, 2).contiguous(), None
    if kwargs.get("s_aux") is not None or kwargs.get("position_bias") is not None:
        raise NotImplementedError("attention sinks and position biases take the plain path")
    query, key, value = _alike(query, key, value)
    half = query.dtype in (torch.float16, torch.bfloat16) and softcap is None and not dropout
    if half and varlen_works(query.device, query.dtype, query.shape[-1]):
        out = by_varlen(query, key, value, layout, scaling, sliding_window)
        return out.transpose(1, 2).contiguous(), None
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    out = by_part(query, key, value, layout, dropout, scaling, softcap, sliding_window)
    return out.transpose(1, 2).contiguous(), None


def _alike(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All three in autocast's precision. With weights in float32 the rotation gives queries and
    keys in float32 beside values in half, and no flash kernel takes such a mixture."""
    device = query.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    else:
        dtype = value.dtype
    return query.to(dtype), key.to(dtype), value.to(dtype)


def by_part(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Layout,
    dropout: float = 0.0,
    scale: float | None = None,
    softcap: float | None = None,
    window: int | None = None,
) -> Tensor:
    """Attention one part after another. All of shape (1, heads, T, d)."""
    queries, keys, values = (x.split(layout.sizes, dim=2) for x in (query, key, value))
    outputs = []
    own = (keys[0], values[0])
    for part, q, k, v in zip(layout.parts, queries, keys, values, strict=True):
        past = part.past.stop - part.past.start
        if past:  # cut from the prompt's own part: a slice of the row has a gradient of its size
            k, v = (torch.cat([of[:, :, :past], x], 2) for of, x in zip(own, (k, v), strict=True))
        else:
            own = (k, v)
        mask = layout.mask(part, window, q.device)
        if softcap is not None:
            if mask is None:
                mask = causal_mask(q.shape[2], k.shape[2], device=q.device)
            outputs.append(_softcapped(q, k, v, mask, dropout, scale, softcap))
        else:
            out = F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, dropout_p=dropout, scale=scale, is_causal=mask is None
            )
            outputs.append(out)
    return torch.cat(outputs, dim=2)


def by_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Layout,
    scale: float | None = None,
    window: int | None = None,
) -> Tensor:
    """All parts in one call of a variable-length flash kernel: each is a sequence whose queries are
    the last of its keys. Shapes (1, heads, T, d); keys and values may have fewer heads, which the
    kernel reads as they are."""
    from torch.nn.attention.varlen import varlen_attn

    grouped: dict[str, Any] = {"enable_gqa": True} if query.shape[1] != key.shape[1] else {}
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    back = -1 if window is None else window - 1
    out: Any = varlen_attn(
        q.contiguous(),
        k[layout.keys],
        v[layout.keys],
        *layout.boundaries,
        max(layout.sizes),
        max(part.seen for part in layout.parts),
        scale=scale,
        window_size=(back, 0),
        **grouped,
    )
    return out.transpose(0, 1)[None]


@functools.cache
def varlen_works(device: torch.device, dtype: torch.dtype, width: int) -> bool:
    """Whether the variable-length kernel is there and means what it should on this device."""
    return device.type == "cuda" and varlen_agrees(device, dtype, width)


def varlen_agrees(device: torch.device, dtype: torch.dtype, width: int) -> bool:
    """Compare the variable-length kernel with the other path, on a made-up row with grouped heads,
    plain and with a window."""
    layout = Layout((Segment(9, (5, 7)), Segment(2, (4,))), torch.zeros(1, device=device).long())
    generator = torch.Generator(device).manual_seed(0)
    size = sum(layout.sizes)
    q, k, v = (
        torch.randn(1, heads, size, width, device=device, generator=generator).to(dtype)
        for heads in (4, 2, 2)
    )
    wide_k, wide_v = (x.repeat_interleave(2, dim=1) for x in (k, v))
    try:
        with torch.no_grad():
            pairs = [
                (by_varlen(q, k, v, layout, window=w), by_part(q, wide_k, wide_v, layout, window=w))
                for w in (None, 4)
            ]
    except (ImportError, RuntimeError, TypeError) as error:
        log.info("variable-length attention is not used: %s", error)
        return False
    return all(torch.allclose(a.float(), b.float(), atol=0.05) for a, b in pairs)


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
