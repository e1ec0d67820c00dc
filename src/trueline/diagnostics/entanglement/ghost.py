"""Inner products of completions' gradients, exact for all trained parameters, none of them stored.

One forward and one backward pass give, for each module that holds trained parameters, its inputs
and the gradients of its outputs, token by token. From these
:mod:`trueline.diagnostics.entanglement.ghost_rules` makes inner products. Completions stand in
separate segments, so a token's gradient belongs to one.

The LM head's own gradient is a proxy that needs no backward pass. With hidden states h and
next-token probabilities s, for two scored tokens y and y',

    <grad log s_i[y], grad log s_j[y']> = <h_i, h_j> (1{y = y'} - s_i[y'] - s_j[y] + <s_i, s_j>)

in the head's weights alone. Every other layer is left out, which can turn the sign.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trueline.batching import Branch, PackedBatch, TokenTree, pack
from trueline.diagnostics.entanglement.ghost_rules import Call, Uses, gram, owners_by_shape, wide
from trueline.errors import UserError
from trueline.scoring import Scorer, evaluating
from trueline.scoring.scorer import Shortcuts, packed_log_probs, plain_log_probs

SEPARATE = Shortcuts(share=False, chunked_head=False)
"""Every completion in a segment of its own, and the LM head as a module whose calls can be seen."""


@dataclass(frozen=True)
class Products:
    """Inner products of C completions' gradients, within groups of g that follow each other.

    Args:
        tokens: (M,) log-probs of the scored tokens, nats.
        by_layer: (C / g, g, g) for each layer; they add up to :attr:`total`.
    """

    tokens: Tensor
    by_layer: Mapping[str, Tensor]

    @property
    def total(self) -> Tensor:
        """(C / g, g, g) over all trained parameters, float64."""
        return torch.stack(list(self.by_layer.values())).sum(0)


class GradientProducts:
    """<g_i, g_j> of completions, g_i the gradient of log pi(y_i|x_i) in all trained parameters.

    Linear layers, embeddings, norms and biases have closed rules, cross terms of tied weights
    included. A parameter that no rule covers, or whose rule fails the check made at the start on
    made-up tokens, takes one backward pass a completion, exactly; it is in :attr:`explicit`.

    Args:
        scorer: of the policy. Only parameters that require a gradient count: with an adapter, the
            adapter's.
        check: compare with the explicit gradient first.

    Raises:
        UserError: no parameter is trained, or parameters are sharded.
    """

    def __init__(self, scorer: Scorer, *, check: bool = True) -> None:
        self.scorer = scorer
        self.names: dict[Tensor, str] = {
            p: name for name, p in scorer.model.named_parameters() if p.requires_grad
        }
        if not self.names:
            raise UserError("no parameter of the model requires a gradient; there is none to take")
        if any(hasattr(p, "placements") or not p.numel() for p in self.names):
            raise UserError(
                "the model's parameters are sharded (FSDP, ZeRO-3), and gradients of single "
                "completions need them whole; use one process a model, or DDP"
            )
        self.explicit: set[Tensor] = set()
        if check:
            self.explicit = self._failing()

    def __call__(
        self,
        trees: Sequence[TokenTree],
        *,
        group: int | None = None,
        weights: Tensor | None = None,
    ) -> Products:
        """The inner products of the trees' completions.

        Args:
            trees: their branches are the C completions, in order.
            group: completions to compare with each other: 2 for (chosen, rejected), 1 for squared
                norms alone; None for all with all.
            weights: (M,) a weight for each scored token's log-prob; None for 1.
        """
        tokens, found = self._by_parameter(trees, group, weights)
        layers: dict[str, Tensor] = {}
        for parameter, block in found:
            layer = layer_of(self.names[parameter])
            layers[layer] = layers.get(layer, 0.0) + block.double()
        return Products(tokens, layers)

    def _by_parameter(
        self, trees: Sequence[TokenTree], group: int | None, weights: Tensor | None
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        batch = pack(trees, share=False).to(next(iter(self.names)).device)
        count = len(batch.length)
        group = group or count
        with torch.enable_grad(), evaluating(self.scorer.model):
            calls, tokens = self._forward(trees, batch)
            values = batch.sums(tokens if weights is None else tokens * weights)
            outputs = [call.output for call in calls]
            slopes = torch.autograd.grad(
                values.sum(), outputs, allow_unused=True, retain_graph=True
            )
        uses = Uses(owners_by_shape(trees, batch, packed=self.scorer.fast), count)
        with torch.no_grad():
            for call, slope in zip(calls, slopes, strict=True):
                uses.take(call, slope)
            rules = {p: b for p, b in uses.blocks(group) if p in self.names}
        left = [p for p in self.names if p in self.explicit or p not in rules]
        for parameter in left:
            rules[parameter] = _explicit(values, parameter, group)
        return tokens.detach(), list(rules.items())

    def _forward(self, trees: Sequence[TokenTree], batch: PackedBatch) -> tuple[list[Call], Tensor]:
        """(M,) per-token log-probs, with every call of a module that holds trained parameters."""
        calls: list[Call] = []

        def note(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if isinstance(output, Tensor) and output.requires_grad:
                calls.append(Call(module, inputs, output, output._version))

        owners = (
            m
            for m in self.scorer.model.modules()
            if any(p in self.names for p in m._parameters.values() if p is not None)
        )
        handles = [module.register_forward_hook(note) for module in owners]
        try:
            if self.scorer.fast:
                tokens = packed_log_probs(self.scorer.core, batch, SEPARATE)
            else:
                tokens = plain_log_probs(self.scorer.model, batch, trees)
        finally:
            for handle in handles:
                handle.remove()
        return calls, tokens

    def _failing(self) -> set[Tensor]:
        """Parameters whose rule disagrees with the gradient of log pi_w - 2 log pi_l on a made-up
        pair; the two weights tell the completions apart."""
        tree = _made_up(self.scorer.core.config.get_text_config().vocab_size)
        _, found = self._by_parameter([tree], 2, None)
        batch = pack([tree], share=False).to(next(iter(self.names)).device)
        with torch.enable_grad(), evaluating(self.scorer.model):
            _, tokens = self._forward([tree], batch)
            value = (batch.sums(tokens) * tokens.new_tensor([1.0, -2.0])).sum()
            truth = torch.autograd.grad(value, [p for p, _ in found], allow_unused=True)
        failing = set()
        for (parameter, block), gradient in zip(found, truth, strict=True):
            w, l, both = (float(block[0, i, j]) for i, j in ((0, 0), (1, 1), (0, 1)))  # noqa: E741
            expected = 0.0 if gradient is None else float(gradient.double().pow(2).sum())
            tolerance = _tolerance(parameter) * (w + 4 * l) + 1e-12
            if not abs(w + 4 * l - 4 * both - expected) <= tolerance:
                failing.add(parameter)
        return failing


def _made_up(vocabulary: int) -> TokenTree:
    """A pair of random tokens, its completions with a token in common."""
    rng = np.random.default_rng(0)
    ids = rng.integers(min(3, vocabulary - 1), min(vocabulary, 1000), 16).astype(np.int32)
    branches = (ids[6:11], ids[10:])
    return TokenTree(
        ids[:6], tuple(Branch(x, np.ones(len(x), dtype=np.bool_)) for x in branches), (True, False)
    )


def _tolerance(parameter: Tensor) -> float:
    """Of a check in the precision that the model runs in."""
    low = parameter.dtype not in (torch.float32, torch.float64)
    return 0.05 if low or torch.is_autocast_enabled(parameter.device.type) else 1e-3


def layer_of(name: str) -> str:
    """The layer a parameter belongs to, from its name.

    Example:
        >>> layer_of("model.layers.3.mlp.up_proj.weight"), layer_of("lm_head.weight")
        ('layer 3', 'lm_head')
    """
    number = re.search(r"\.(\d+)\.", name)
    if number:
        return f"layer {number.group(1)}"
    return next((part for part in reversed(name.split(".")[:-1]) if part != "default"), name)


def _explicit(values: Tensor, parameter: Tensor, group: int) -> Tensor:
    """One backward pass a completion: what no rule covers."""
    found = []
    for value in values:
        (gradient,) = torch.autograd.grad(value, [parameter], retain_graph=True, allow_unused=True)
        found.append(torch.zeros_like(parameter) if gradient is None else gradient)
    return gram(wide(torch.stack(found)).flatten(1), group)


def head_products(scorer: Scorer, trees: Sequence[TokenTree]) -> Products:
    """All inner products of the trees' completions in the LM head's weights, one forward pass."""
    head = scorer.core.get_output_embeddings()
    batch = pack(trees, share=False).to(head.weight.device)
    with torch.no_grad(), evaluating(scorer.model):
        tokens, hidden, logits = _watched(scorer, head, trees, batch)
        kernel = _kernel(hidden, logits, batch.targets, _softcap(scorer))
        owners, count = batch.owners, len(batch.length)
        half = kernel.new_zeros(count, len(owners)).index_add_(0, owners, kernel)
        gram = kernel.new_zeros(count, count).index_add_(1, owners, half)
        return Products(tokens, {"lm_head": gram[None].double()})


def _kernel(hidden: Tensor, logits: Tensor, targets: Tensor, softcap: float | None) -> Tensor:
    """(M, M) inner products of single tokens' gradients."""
    hidden, logits = hidden.to(_wide(hidden)), logits.to(_wide(logits))
    if softcap is None:
        s = logits.softmax(-1)
        same = (targets[:, None] == targets[None]).to(s.dtype)
        other = s[:, targets]  # s_i[y_j]
        return (hidden @ hidden.T) * (same - other - other.T + s @ s.T)
    squashed = torch.tanh(logits / softcap)
    slope = nn.functional.one_hot(targets, logits.shape[-1]) - (softcap * squashed).softmax(-1)
    slope = slope * (1 - squashed**2)
    return (hidden @ hidden.T) * (slope @ slope.T)


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(torch.float32, tensor.dtype)


def _softcap(scorer: Scorer) -> float | None:
    return getattr(scorer.core.config.get_text_config(), "final_logit_softcapping", None)


def _watched(
    scorer: Scorer, head: nn.Module, trees: Sequence[TokenTree], batch: PackedBatch
) -> tuple[Tensor, Tensor, Tensor]:
    """(M,) log-probs with the head's inputs (M, d) and outputs (M, V) at the scored tokens."""
    seen: list[tuple[Tensor, Tensor]] = []

    def note(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        seen.append((inputs[0], output))

    handle = head.register_forward_hook(note)
    try:
        if scorer.fast:
            return packed_log_probs(scorer.core, batch, SEPARATE), *seen[0]
        tokens = plain_log_probs(scorer.model, batch, trees)
    finally:
        handle.remove()
    rows, columns = _places(trees)
    return tokens, seen[0][0][rows, columns], seen[0][1][rows, columns]


def _places(trees: Sequence[TokenTree]) -> tuple[list[int], list[int]]:
    """Row and column, in padded rows, of what predicts each scored token."""
    rows: list[int] = []
    columns: list[int] = []
    flat = ((tree, branch) for tree in trees for branch in tree.branches)
    for row, (tree, branch) in enumerate(flat):
        at = np.flatnonzero(branch.mask) + len(tree.prompt) - 1
        columns += at[at >= 0].tolist()
        rows += [row] * int((at >= 0).sum())
    return rows, columns
