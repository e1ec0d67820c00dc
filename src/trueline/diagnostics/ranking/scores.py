"""Log-probs of every completion of some examples under one model, for whatever compares them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch

from trueline.batching import Encoder
from trueline.errors import UserError
from trueline.logprobs import CompletionLogProbs, PairedLogProbs
from trueline.prompts import Progress
from trueline.records import Example
from trueline.scoring import TOKEN_BUDGET, score_trees

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Array: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]
Counts: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, slots=True)
class Scores:
    """What one model gives the completions of N examples.

    Args:
        log_probs: for each example (n,) sums over the scored tokens of its n completions, nats.
        lengths: for each example (n,) numbers of scored tokens.
        cut: what the encoder had to do: ``prompts_truncated``, ``completions_truncated``, ...
    """

    log_probs: tuple[Array, ...]
    lengths: tuple[Counts, ...]
    cut: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.log_probs)


def score_completions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    *,
    as_reference: bool = False,
    max_length: int | None = 1024,
    max_prompt_length: int | None = None,
    max_tokens: int = TOKEN_BUDGET,
    progress: Progress | None = None,
) -> Scores:
    """The log-prob of every completion, with training's own tokens and the fast scorer.

    Dropout is off, no gradient is kept, and the model is left as it was.

    Args:
        model: a causal language model, with or without adapters.
        tokenizer: its tokenizer; messages need a chat template.
        examples: N examples.
        as_reference: condition on ``reference_prompt`` where an example has one (E-RLHF).
        max_length, max_prompt_length: as in training; longer ones are cut and counted.
        max_tokens: tokens in one forward pass; a longer example goes alone.
        progress: called with (examples done, all) after each example.

    Raises:
        UserError: no examples, or one that has no tokens to score.
    """
    if not examples:
        raise UserError("no examples were given")
    encoder = Encoder(tokenizer, max_length=max_length, max_prompt_length=max_prompt_length)
    trees = [encoder(example) for example in examples]
    if as_reference:
        trees = [tree.for_reference() for tree in trees]
    log_probs: list[Array] = []
    lengths: list[Counts] = []
    for sums, counts in score_trees(model, trees, max_tokens=max_tokens):
        log_probs.append(sums.numpy())
        lengths.append(counts.numpy())
        if progress is not None:
            progress(len(log_probs), len(trees))
    return Scores(tuple(log_probs), tuple(lengths), dict(encoder.counts))


@dataclass(frozen=True, slots=True)
class PairIndex:
    """Where each of P preference pairs comes from.

    Args:
        example: (P,) index of its example.
        pair: (P,) index among the example's pairs.
        chosen, rejected: (P,) indices among the example's completions.
    """

    example: Counts
    pair: Counts
    chosen: Counts
    rejected: Counts

    @classmethod
    def of(cls, examples: Sequence[Example]) -> PairIndex:
        """The pairs of the examples, in order.

        Raises:
            UserError: there are none.
        """
        rows = [
            (i, j, chosen, rejected)
            for i, example in enumerate(examples)
            for j, (chosen, rejected) in enumerate(example.pairs)
        ]
        if not rows:
            raise UserError(
                f"none of the {len(examples)} examples has a preference pair; ranking needs "
                "columns prompt, chosen and rejected (or scores)"
            )
        columns = np.asarray(rows, dtype=np.int64).T
        return cls(*columns)

    def __len__(self) -> int:
        return len(self.example)

    def take(self, values: Sequence[Any], side: Counts) -> Array:
        """(P,) of per-completion values, one array an example, at one side of the pairs."""
        return np.asarray(
            [values[i][k] for i, k in zip(self.example, side, strict=True)], dtype=np.float64
        )

    def log_probs(self, policy: Scores, reference: Scores | None = None) -> PairedLogProbs:
        """The pairs as objectives take them, in float64."""

        def one(side: Counts) -> CompletionLogProbs:
            before = None if reference is None else self.take(reference.log_probs, side)
            return CompletionLogProbs(
                torch.from_numpy(self.take(policy.log_probs, side)),
                torch.from_numpy(self.take(policy.lengths, side)),
                None if before is None else torch.from_numpy(before),
            )

        return PairedLogProbs(one(self.chosen), one(self.rejected))
