"""Ranking: which completion a model holds more likely, what it could at best, and how hard it is.

Here ``ranking`` measures a model, ``ranking_of`` log-probs that are there already, and
``difficulty_of`` gives the difficulty of every pair, which needs the reference alone. The
definitions are in :mod:`trueline.diagnostics.ranking.theory`. The file is long by what its public
functions have to say of their options.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from trueline.diagnostics.ranking.measure import (
    Pairs,
    accuracies,
    advice,
    changes,
    difficulties,
    flips,
    histogram,
    ideals,
    lengths,
    summary,
)
from trueline.diagnostics.ranking.reach import rankings, rater_shares, reach_of, ties
from trueline.diagnostics.ranking.scores import (
    PairIndex,
    Scores,
    score_completions,
)
from trueline.diagnostics.ranking.theory import BETAS, difficulty
from trueline.errors import UserError
from trueline.logprobs import PairedLogProbs
from trueline.prompts import Progress
from trueline.records import Example
from trueline.results import Finding, Metric
from trueline.runs.record import Key
from trueline.scoring import TOKEN_BUDGET

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "Difficulties",
    "Scores",
    "difficulties_of",
    "difficulty",
    "difficulty_of",
    "ranking",
    "ranking_of",
    "ranking_of_scores",
    "score_completions",
]

Array: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, slots=True)
class Difficulties:
    """The difficulty of P pairs; all arrays are (P,), pairs in the order of the examples.

    Args:
        value: c = l_ref(rejected) - l_ref(chosen), nats; above 0 the reference ranks it wrong.
        example: index of the pair's example.
        pair: index among that example's pairs.
        chosen, rejected: log-probs under the reference, nats, summed over tokens.
        chosen_length, rejected_length: scored tokens.
    """

    value: Array
    example: np.ndarray[Any, np.dtype[np.int64]]
    pair: np.ndarray[Any, np.dtype[np.int64]]
    chosen: Array
    rejected: Array
    chosen_length: Array
    rejected_length: Array

    def __len__(self) -> int:
        return len(self.value)


def difficulty_of(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    *,
    max_length: int | None = 1024,
    max_prompt_length: int | None = None,
    max_tokens: int = TOKEN_BUDGET,
    progress: Progress | None = None,
) -> Difficulties:
    """How hard each preference pair is for a training that starts at (or refers to) ``model``.

    Args:
        model: the reference, or the model that training will start from.
        tokenizer: its tokenizer.
        examples: examples with preference pairs; one without pairs has no entry.
        max_length, max_prompt_length: as in training.
        max_tokens: tokens in one forward pass.
        progress: called with (examples done, all) after each pass.

    Raises:
        UserError: no examples, or no pair among them.

    Source: Chen et al. 2024, arXiv 2405.19534.
    """
    PairIndex.of(examples)  # refuses data without pairs before anything is computed
    reference = score_completions(
        model,
        tokenizer,
        examples,
        as_reference=True,
        max_length=max_length,
        max_prompt_length=max_prompt_length,
        max_tokens=max_tokens,
        progress=progress,
    )
    return difficulties_of(examples, reference)


def difficulties_of(examples: Sequence[Example], reference: Scores) -> Difficulties:
    """The difficulty of every pair, from the scores of a reference that are there already."""
    index = PairIndex.of(examples)
    chosen = index.take(reference.log_probs, index.chosen)
    rejected = index.take(reference.log_probs, index.rejected)
    return Difficulties(
        value=difficulty(chosen, rejected),
        example=index.example,
        pair=index.pair,
        chosen=chosen,
        rejected=rejected,
        chosen_length=index.take(reference.lengths, index.chosen),
        rejected_length=index.take(reference.lengths, index.rejected),
    )


def ranking(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    *,
    reference: PreTrainedModel | None = None,
    objective: str | Sequence[str] = "dpo",
    options: Mapping[str, Any] | None = None,
    alpha: float | Literal["scores"] = 1.0,
    betas: Sequence[float] = BETAS,
    loss: float | None = None,
    max_length: int | None = 1024,
    max_prompt_length: int | None = None,
    max_tokens: int = TOKEN_BUDGET,
    name: str = Key.RANKING,
    progress: Progress | None = None,
) -> Finding:
    """How well the model ranks chosen above rejected, and how well it could; see
    :func:`ranking_of`.

    Beside the pairs, whole rankings of three and more scored completions are compared
    (``gap/exact_ranking``, chance 1/n!), and completions whose scores are equal as ties
    (``gap/ties``).

    Args:
        model: the policy.
        tokenizer: its tokenizer.
        examples: held-out examples with preference pairs.
        reference: the model that training started from; None where the policy is that model.
        objective, options, betas, loss, name: as in :func:`ranking_of`.
        alpha: share of raters who prefer the chosen completion, for all pairs; ``"scores"`` reads
            it from the data as score(chosen) / (score(chosen) + score(rejected)), for scores that
            are votes or shares of votes.
        max_length, max_prompt_length: as in training.
        max_tokens: tokens in one forward pass.
        progress: called with (examples done, all) after each pass; twice through, where there is
            a reference.

    Raises:
        UserError: no pairs, scores that are no votes, or an option out of range.
    """
    PairIndex.of(examples)  # refuses data without pairs before anything is computed
    score = functools.partial(
        score_completions,
        tokenizer=tokenizer,
        examples=examples,
        max_length=max_length,
        max_prompt_length=max_prompt_length,
        max_tokens=max_tokens,
        progress=progress,
    )
    policy = score(model)
    start = None if reference is None else score(reference, as_reference=True)
    return ranking_of_scores(
        examples, policy, start,
        objective=objective, options=options, alpha=alpha, betas=betas, loss=loss,
        name=name,
    )  # fmt: skip


def ranking_of_scores(
    examples: Sequence[Example],
    policy: Scores,
    reference: Scores | None = None,
    *,
    alpha: float | Literal["scores"] = 1.0,
    name: str = Key.RANKING,
    **options: Any,
) -> Finding:
    """The finding of :func:`ranking` from scores that are there already.

    Args:
        examples: the examples that were scored.
        policy, reference: what :func:`score_completions` gave for each model.
        alpha, name: as in :func:`ranking`.
        options: the others of :func:`ranking_of`.
    """
    index = PairIndex.of(examples)
    shares = rater_shares(examples, index) if isinstance(alpha, str) else alpha
    if isinstance(alpha, str) and alpha != "scores":
        raise UserError(f"alpha must be a share in [0, 1] or 'scores', got {alpha!r}")
    finding = ranking_of(
        index.log_probs(policy, reference),
        alpha=shares,
        groups=index.example,
        name=name,
        **options,
    )
    more = (*rankings(examples, policy), *ties(examples, policy))
    cut = {key: count for key, count in policy.cut.items() if key.endswith("truncated") and count}
    words = [finding.advice]
    if cut:
        said = " and ".join(f"{count} {key.replace('_', ' ')}" for key, count in cut.items())
        words.append(f"{said}: their log-probs are of what was left; raise max_length to see all.")
    return replace(finding, metrics=(*finding.metrics, *more), advice=" ".join(filter(None, words)))


def ranking_of(
    pairs: PairedLogProbs,
    *,
    objective: str | Sequence[str] = "dpo",
    options: Mapping[str, Any] | None = None,
    alpha: Any = 1.0,
    betas: Sequence[float] = BETAS,
    loss: float | None = None,
    groups: Any = None,
    name: str = Key.RANKING,
) -> Finding:
    """How well log-probs rank pairs, against what an ideal optimum would.

    Args:
        pairs: P pairs with log-probs under the policy and, where it was trained from another, the
            reference. Without one the policy itself is what a training would refer to, and the
            metrics of change are left out.
        objective, options: what the policy was (or would be) trained with: ``dpo``, ``ipo`` and
            ``gamma_dpo`` have thresholds of their own; for others DPO's at the same beta are
            given, and the summary says so.
        alpha: share of raters who prefer the chosen completion, one number or (P,); 1 is
            unanimous and counts as odds of 1000.
        betas: over which minimum, median and maximum of the idealized accuracy are taken.
        loss: a loss to compare thresholds with; the policy's own mean loss where there is a
            reference.
        groups: (P,) which prompt each pair belongs to, for the intervals; each its own if None.
        name: the finding's name.

    Returns:
        A finding whose metrics are called ``gap/...``; docs/diagnostics.md lists them.

    Raises:
        UserError: no pairs, a log-prob that is not finite, an option out of range.

    Source: Chen et al. 2024, arXiv 2405.19534.
    """
    if not len(betas):
        raise UserError("betas is empty; give at least one, such as 0.1")
    reach = reach_of(objective, options)
    measured = Pairs(pairs, None if groups is None else np.asarray(groups))
    metrics: tuple[Metric, ...] = (
        *accuracies(measured),
        *ideals(measured, alpha, betas, reach),
        *difficulties(measured, alpha, reach, loss),
        *flips(measured),
        *changes(measured),
        *lengths(measured),
    )
    found = {metric.name.removeprefix("gap/"): metric for metric in metrics}
    figures = {
        "difficulty": histogram(measured.difficulty),
        "margin": histogram(measured.margin if measured.trained else measured.lead()),
        "reach": reach.facts(alpha),
    }
    return Finding(name, summary(found, reach), metrics, advice(found, reach, alpha), figures)
