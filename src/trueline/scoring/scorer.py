"""The scorer: log-probs of token trees under a model, by the fast path or the plain one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trueline.batching import Branch, PackedBatch, TokenTree, pack
from trueline.prompts import pad
from trueline.scoring.attention import ATTENTION
from trueline.scoring.head import LastLayer, Patch, head_log_probs

log = logging.getLogger(__name__)


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


@dataclass(frozen=True)
class Shortcuts:
    """What the fast path saves. All are exact; each can be turned off to measure it alone.

    Args:
        share: a prompt is computed once for all its completions.
        pack: trees lie end to end; off, each is padded to the longest.
        compact_head: the LM head sees only positions that predict a scored token.
        chunked_head: logits are made and used in chunks and never stored.
        last_layer: the last layer's row-wise parts run on scored positions only.
    """

    share: bool = True
    pack: bool = True
    compact_head: bool = True
    chunked_head: bool = True
    last_layer: bool = True


class Scorer:
    """Scores token trees under a model: ``scorer(trees)`` gives per-token log-probs.

    Attaching it teaches ``model(packed=batch)`` to return the (M,) log-probs of a packed batch, so
    that wrappers around the model (DDP, FSDP, PEFT) keep their hooks. :meth:`detach` undoes it.

    Args:
        model: a Hugging Face causal language model, or a PEFT model around one.
        shortcuts: what to save; turned off only to measure.
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

    def __init__(
        self, model: nn.Module, *, shortcuts: Shortcuts | None = None, check: bool = True
    ) -> None:
        self.model = model
        self.shortcuts = shortcuts or Shortcuts()
        self.core = _causal_lm(model)
        self.fast = True
        self._through = model
        self._attach()
        if check:
            self._check()

    def verify_through(self, wrapper: nn.Module) -> None:
        """The check that ``check=False`` left out, called through a wrapper around the model: where
        weights are sharded, it alone can run a forward pass."""
        self._through = wrapper
        self._check()

    def _check(self) -> None:
        """Leave out what the architecture does not bear: the last-layer shortcut, then all."""
        reason = verify(self)
        if reason is not None and self.shortcuts.last_layer:
            self.detach()
            self.shortcuts = replace(self.shortcuts, last_layer=False)
            self._attach()
            log.info("the last-layer shortcut is left out: %s", reason)
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
        self._attention = self.core.config._attn_implementation
        self.core.set_attn_implementation(ATTENTION)

        def packing(original: Callable[..., Any]) -> Callable[..., Any]:
            def forward(*args: Any, packed: PackedBatch | None = None, **kwargs: Any) -> Any:
                if packed is None:
                    return original(*args, **kwargs)
                return packed_log_probs(self.core, packed, self.shortcuts)

            return forward

        self._forward = Patch(self.core, packing)
        self._head = Patch(self.core.get_output_embeddings(), self._scores)
        self._last_layer = LastLayer(body_of(self.core)) if self.shortcuts.last_layer else None

    def _scores(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """The head's forward, which given ``targets`` scores them: called as a module, so that a
        sharded head's weights are there."""
        head = self.core.get_output_embeddings()
        linear = type(head) is nn.Linear  # before any wrapper makes another type of it

        def forward(*args: Any, targets: Tensor | None = None, **kwargs: Any) -> Any:
            if targets is None:
                return original(*args, **kwargs)
            softcap = _softcap(self.core)
            return head_log_probs(head, args[0], targets, softcap=softcap, linear=linear)

        return forward

    def detach(self) -> None:
        """Give the model its own forward method and attention back."""
        self._forward.undo()
        self._head.undo()
        if self._last_layer is not None:
            self._last_layer.detach()
        self.core.set_attn_implementation(self._attention)

    def pack(self, trees: Sequence[TokenTree]) -> PackedBatch:
        """The packed batch of these trees on the model's device."""
        share, padded = self.shortcuts.share, not self.shortcuts.pack
        return pack(trees, share=share, padded=padded).to(_device(self.core))

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


def packed_log_probs(core: Any, batch: PackedBatch, shortcuts: Shortcuts) -> Tensor:
    """(M,) per-token log-probs of a packed batch: body once, head where it counts."""
    hidden = packed_hidden(core, batch)
    at, targets = batch.predictors, batch.targets
    if not shortcuts.compact_head:  # every position, the unscored ones with a target of no account
        rest = torch.ones(len(hidden), dtype=torch.bool, device=at.device)
        rest[batch.layout.scored] = False
        at = torch.cat([at, rest.nonzero()[:, 0]])
        targets = torch.cat([targets, targets.new_zeros(len(at) - len(targets))])
    head = core.get_output_embeddings()
    if shortcuts.chunked_head:
        log_probs = head(hidden[at], targets=targets)  # see Scorer._scores
    else:
        log_probs = head_log_probs(head, hidden[at], targets, softcap=_softcap(core), chunked=False)
    return log_probs[: len(batch.targets)]


def _softcap(core: Any) -> float | None:
    return getattr(core.config.get_text_config(), "final_logit_softcapping", None)


def packed_hidden(core: Any, batch: PackedBatch) -> Tensor:
    """(T, d) the body's last hidden states of a packed batch."""
    output = body_of(core)(
        input_ids=batch.input_ids,
        position_ids=batch.position_ids,
        attention_mask=torch.empty(1, 1, 0, 0, device=batch.input_ids.device),  # see ATTENTION
        layout=batch.layout,
        use_cache=False,
    )
    return output.last_hidden_state[0]


def body_of(core: Any) -> nn.Module:
    """The decoder without its head."""
    return getattr(core, core.base_model_prefix)


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

    batches = [
        [TokenTree(ids(7), (branch(5), branch(9)), (True, False))],
        [
            TokenTree(ids(3), (branch(1), branch(4)), (True, False)),
            TokenTree(ids(6), (branch(3), branch(8)), (True, False)),
        ],
    ]
    for trees in batches:  # two, so that nothing kept from one can pass for the other
        batch = scorer.pack(trees)
        through = scorer._through
        with torch.no_grad(), evaluating(through), _in_full(scorer.core) as full:
            try:
                fast = scorer(trees, batch, through=through)
                plain = plain_log_probs(through, batch, trees)
            except _FAILURES as error:
                return f"the packed forward failed ({type(error).__name__}: {error})"
        difference = (fast - plain).abs().max().item()
        if not difference <= (1e-3 if full() else max(0.15, 2**-6 * plain.abs().max().item())):
            return f"packed and padded log-probs differ by {difference:.3g} nats"
    return None


_FAILURES = (NotImplementedError, TypeError, AttributeError, RuntimeError, ValueError, IndexError)


@contextmanager
def _in_full(core: Any) -> Iterator[Callable[[], bool]]:
    """Says afterwards whether the passes inside ran in float32 throughout.

    Weights in float32 do not tell: an earlier trainer's autocast may have stayed around the
    model's forward method.
    """
    full = [p.dtype in (torch.float32, torch.float64) for p in core.parameters()]
    device = _device(core).type
    handle = body_of(core).register_forward_pre_hook(
        lambda *_: full.append(not torch.is_autocast_enabled(device))
    )
    try:
        yield lambda: all(full)
    finally:
        handle.remove()


@contextmanager
def scoring(model: nn.Module) -> Iterator[Scorer]:
    """A scorer on the model, dropout off; afterwards the model is as it was, also where a trainer
    has a scorer of its own on it."""
    scorer = Scorer(model)
    try:
        with evaluating(model):
            yield scorer
    finally:
        scorer.detach()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Dropout off inside, the training mode back afterwards."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
