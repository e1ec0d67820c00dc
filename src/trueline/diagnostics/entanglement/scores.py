"""The pairs that entanglement looks at, and their log-probs under policy and reference."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from trueline.batching import Encoder, TokenTree, view
from trueline.batching.trees import mismatch
from trueline.errors import UserError
from trueline.logprobs import CompletionLogProbs, PairedLogProbs
from trueline.objectives.base import Objective
from trueline.records import Example
from trueline.scoring import Scorer, scoring

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Indices: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]
Reference: TypeAlias = "PreTrainedModel | Sequence[Sequence[float]] | None"


def draw_pairs(
    tokenizer: PreTrainedTokenizerBase,
    examples: Iterable[Example],
    *,
    max_pairs: int,
    max_length: int | None,
    seed: int,
) -> tuple[list[TokenTree], Indices, Indices]:
    """At most ``max_pairs`` of the examples' pairs, drawn at random.

    Returns:
        The trees, the index of each one's example, and its place among all pairs.

    Raises:
        UserError: there is no pair.
    """
    examples = list(examples)
    rows = [(i, k) for i, example in enumerate(examples) for k in range(len(example.pairs))]
    if not rows:
        raise UserError(
            f"none of the {len(examples)} examples has a preference pair; entanglement needs "
            "columns prompt, chosen and rejected"
        )
    kept = np.arange(len(rows))
    if len(rows) > max_pairs:
        kept = np.sort(np.random.default_rng(seed).choice(kept, max_pairs, replace=False))
    encoder = Encoder(tokenizer, max_length=max_length)
    encoded = {i: encoder(examples[i]) for i in sorted({rows[place][0] for place in kept})}
    trees = []
    for place in kept:
        i, k = rows[place]
        trees.append(list(view(examples[i], encoded[i], "paired"))[k])
    return trees, np.asarray([rows[place][0] for place in kept]), kept


def pair_log_probs(
    scorer: Scorer,
    trees: Sequence[TokenTree],
    spec: Objective,
    reference: Reference,
    places: Indices,
    *,
    size: int,
    seed: int,
) -> tuple[PairedLogProbs, CompletionLogProbs | None]:
    """The pairs' log-probs, with the reference's where the objective reads it, and, where it takes
    its baseline from them, other examples' completions behind the same prompts.

    Args:
        reference: see :func:`trueline.diagnostics.entanglement`.
        places: of the trees among the pairs that ``reference`` lists, where it lists log-probs.
        size: trees in a forward pass.
        seed: of the draw of other examples' completions, where a draw is needed.
    """
    sets = [list(trees)]
    if spec.statistic is not None and spec.statistic.of == "mismatched":
        sets.append(mismatch(trees, trees, np.random.default_rng(seed)))
    scores = [_score(scorer, part, size) for part in sets]
    references: list[Tensor | None] = [None] * len(sets)
    if spec.reference and _is_listed(reference):
        if len(sets) > 1:
            raise UserError(
                f"objective {spec.name!r} compares other examples' completions with the "
                "reference, too; give the reference model rather than its log-probs"
            )
        references = [_listed(reference, places)]
    elif spec.reference:
        with _referring(scorer, reference) as other:
            seen = [[tree.for_reference() for tree in part] for part in sets]
            references = [_score(other, part, size)[0] for part in seen]
    every = [
        CompletionLogProbs(policy, length, under)
        for (policy, length), under in zip(scores, references, strict=True)
    ]
    pairs = PairedLogProbs(every[0].map(lambda x: x[0::2]), every[0].map(lambda x: x[1::2]))
    _check_finite(pairs, trees)
    return pairs, every[1] if len(every) > 1 else None


def _score(scorer: Scorer, trees: Sequence[TokenTree], size: int) -> tuple[Tensor, Tensor]:
    """(C,) sums of log-probs, float64, and lengths, on the CPU."""
    sums, lengths = [], []
    with torch.no_grad():
        for start in range(0, len(trees), size):
            part = trees[start : start + size]
            batch = scorer.pack(part)
            sums.append(batch.sums(scorer(part, batch).double()).cpu())
            lengths.append(batch.length.cpu())
    return torch.cat(sums), torch.cat(lengths)


@contextmanager
def _referring(scorer: Scorer, reference: Any) -> Iterator[Scorer]:
    """A scorer of the reference; without one, of the base under an adapter or of the policy."""
    if reference is not None:
        with scoring(reference) as other:
            yield other
        return
    model: Any = scorer.model
    with model.disable_adapter() if hasattr(model, "peft_config") else nullcontext():
        yield scorer


def _is_listed(reference: Reference) -> bool:
    return reference is not None and not isinstance(reference, nn.Module)


def _listed(reference: Any, places: Indices) -> Tensor:
    values = np.asarray(reference, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] != 2 or len(values) <= places.max():
        raise UserError(
            "reference log-probs must be (chosen, rejected) for every pair of the examples; got "
            f"shape {values.shape} for pair {int(places.max())} and those before it"
        )
    return torch.from_numpy(values[places]).flatten()


def _check_finite(pairs: PairedLogProbs, trees: Sequence[TokenTree]) -> None:
    finite = pairs.chosen.policy.isfinite() & pairs.rejected.policy.isfinite()
    if not bool(finite.all()):
        bad = [trees[i].id or f"pair {i}" for i in (~finite).nonzero()[:, 0].tolist()]
        raise UserError(f"log-probs are not finite for {', '.join(bad[:8])}")
