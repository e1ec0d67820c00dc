"""The metrics of ranking, ``gap/*``, from the log-probs of pairs; no model is needed; and in
words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from trueline.diagnostics.ranking.reach import Reach
from trueline.diagnostics.ranking.theory import Array, Flags, idealized
from trueline.errors import UserError
from trueline.logprobs import CompletionLogProbs, PairedLogProbs
from trueline.results import Metric
from trueline.stats import clustered_mean, clustered_rate, paired_difference
from trueline.stats.resampling import quantile

Groups: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
BINS = 5
SMALLEST_BIN = 20
"""Mis-ranked pairs in a bin of difficulty; fewer would say nothing with an interval."""


@dataclass(frozen=True)
class Pairs:
    """P pairs as plain numbers; without a reference the policy is what training would refer to.

    Args:
        logps: log-probs under the policy (and the reference), summed, nats.
        groups: (P,) the prompt each pair belongs to, or None where each has its own.
    """

    logps: PairedLogProbs
    groups: Groups | None = None

    def __post_init__(self) -> None:
        if not len(self.logps):
            raise UserError("no preference pairs were given")
        sides = (self.logps.chosen, self.logps.rejected)
        tensors = [t for side in sides for t in (side.policy, side.reference) if t is not None]
        bad = sum(int((~tensor.isfinite()).sum()) for tensor in tensors)
        if bad:
            raise UserError(f"{bad} of the log-probs are not finite")

    @property
    def trained(self) -> bool:
        """Whether there is a reference beside the policy."""
        return self.logps.chosen.reference is not None

    def lead(self, of: str = "policy", *, per_token: bool = False) -> Array:
        """(P,) by how much the chosen completion leads: in log-prob under the ``"policy"`` or the
        ``"reference"``, nats, or in ``"length"``, tokens."""
        of = "policy" if of == "reference" and not self.trained else of

        def one(side: CompletionLogProbs) -> Array:
            values = getattr(side, of) / side.length if per_token else getattr(side, of)
            numbers: Array = values.detach().double().cpu().numpy()
            return numbers

        return one(self.logps.chosen) - one(self.logps.rejected)

    @property
    def difficulty(self) -> Array:
        """(P,) c under the reference, nats."""
        return -self.lead("reference")

    @property
    def right(self) -> Flags:
        """(P,) whether the policy ranks the pair right."""
        return self.lead() >= 0

    @property
    def margin(self) -> Array:
        """(P,) the policy's lead over the reference's, nats."""
        return self.lead() + self.difficulty

    @property
    def longer(self) -> Array:
        """(P,) tokens by which the chosen completion is the longer one."""
        return self.lead("length")

    def rate(self, name: str, flags: Flags, where: Flags | None = None) -> Metric:
        """A share of the pairs (where a condition holds), with its interval."""
        keep = np.ones(len(flags), dtype=bool) if where is None else where
        groups = None if self.groups is None else self.groups[keep].tolist()
        return clustered_rate(f"gap/{name}", flags[keep].tolist(), groups)

    def change(self, name: str, after: Flags, before: Flags) -> Metric:
        """The difference of two shares of the same pairs, ``after`` minus ``before``, paired."""
        groups = None if self.groups is None else self.groups.tolist()
        return paired_difference(before.tolist(), after.tolist(), name=f"gap/{name}", groups=groups)

    def mean(self, name: str, values: Array, unit: str = "nats") -> Metric:
        """A mean over the pairs, with its interval."""
        groups = None if self.groups is None else self.groups.tolist()
        return clustered_mean(f"gap/{name}", values.tolist(), groups, unit=unit)


def accuracies(pairs: Pairs) -> Iterator[Metric]:
    """R and R~ of policy and reference, and the reward accuracy."""
    yield pairs.rate("ranking_accuracy", pairs.right)
    per_token = pairs.lead("policy", per_token=True) >= 0
    yield pairs.rate("ranking_accuracy_per_token", per_token)
    if pairs.trained:
        yield pairs.rate("reference_ranking_accuracy", pairs.difficulty <= 0)
        reference = pairs.lead("reference", per_token=True) >= 0
        yield pairs.rate("reference_ranking_accuracy_per_token", reference)
        yield pairs.rate("reward_accuracy", pairs.margin > 0)


def ideals(pairs: Pairs, alpha: Any, betas: Sequence[float], reach: Reach) -> Iterator[Metric]:
    """What the optimum would rank right: over the betas, and at the objective's own; the gap."""
    per_token = -pairs.lead("reference", per_token=True)
    for suffix, c in (("", pairs.difficulty), ("_per_token", per_token)):
        found = sorted((idealized(c, alpha, beta) for beta in betas), key=lambda f: f.sum())
        picks = {"min": found[0], "median": found[(len(found) - 1) // 2], "max": found[-1]}
        for word, flags in picks.items():
            yield pairs.rate(f"idealized{suffix}_{word}", flags)
    best = reach.right(pairs.difficulty, alpha)
    yield pairs.rate("idealized", best)
    yield pairs.change("alignment_gap", best, pairs.right)


def difficulties(pairs: Pairs, alpha: Any, reach: Reach, loss: float | None) -> Iterator[Metric]:
    """Quantiles of c, and which pairs are out of reach: of the optimum, and at a loss."""
    c = pairs.difficulty
    for q in QUANTILES:
        yield quantile(f"gap/difficulty_q{round(100 * q):02d}", c, q, unit="nats")
    unreached = ~reach.right(c, alpha)
    yield pairs.rate("out_of_reach", unreached)
    yield pairs.rate("out_of_reach_of_misranked", unreached, c > 0)
    needed = reach.threshold(c)
    wrong = needed[(c > 0) & np.isfinite(needed)]
    yield quantile("gap/threshold_loss", wrong, 0.5, unit="nats")
    if loss is None and pairs.trained:
        losses = reach.loss(pairs.logps)
        yield pairs.mean("loss", losses)
        loss = float(losses.mean())
    if loss is not None:
        yield pairs.rate("needs_lower_loss", ~(needed >= loss))


def flips(pairs: Pairs) -> Iterator[Metric]:
    """What training changed: pairs put right, pairs put wrong, by the difficulty they had."""
    if not pairs.trained:
        return
    wrong = pairs.difficulty > 0
    yield pairs.change("ranking_gain", pairs.right, ~wrong)
    yield pairs.rate("flipped", pairs.right, wrong)
    yield pairs.rate("unlearned", ~pairs.right, ~wrong)
    for low, high in _bins(pairs.difficulty[wrong]):
        inside = wrong & (pairs.difficulty > low) & (pairs.difficulty <= high)
        start = max(low, 0.0)
        yield pairs.rate(f"flipped, c {start:.3g} to {high:.3g}", pairs.right, inside)


def _bins(values: Array) -> list[tuple[float, float]]:
    """(low, high] with about as many values in each."""
    count = min(BINS, len(values) // SMALLEST_BIN)
    if count < 2:
        return []
    edges = np.unique(np.quantile(values, np.linspace(0, 1, count + 1)))
    edges[0] = 0.0
    return list(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True))


def changes(pairs: Pairs) -> Iterator[Metric]:
    """How far each side moved from the reference, nats a completion."""
    if not pairs.trained:
        return
    yield pairs.mean("chosen_change", pairs.logps.chosen.log_ratio.double().cpu().numpy())
    yield pairs.mean("rejected_change", pairs.logps.rejected.log_ratio.double().cpu().numpy())
    yield pairs.mean("margin", pairs.margin)


def lengths(pairs: Pairs) -> Iterator[Metric]:
    """The length baseline: how far 'the longer one wins' goes, and what the policy owes to it."""
    longer = pairs.longer
    yield pairs.rate("longer_wins", longer > 0, longer != 0)
    yield _correlation(pairs.margin if pairs.trained else pairs.lead(), longer)
    views = [("ranking_accuracy", pairs.right)]
    if pairs.trained:
        views.append(("reward_accuracy", pairs.margin > 0))
    for name, flags in views:
        yield pairs.rate(f"{name}_chosen_longer", flags, longer > 0)
        yield pairs.rate(f"{name}_chosen_shorter", flags, longer < 0)


def _correlation(values: Array, lengths: Array) -> Metric:
    """Pearson's, with Fisher's interval; None where one of the two does not vary."""
    name = "gap/margin_length_correlation"
    if len(values) < 4 or not np.ptp(values) or not np.ptp(lengths):
        return Metric(name, None, n=len(values))
    from scipy.stats import pearsonr

    found = pearsonr(values, lengths)
    low, high = found.confidence_interval(0.95)
    return Metric(name, float(found.statistic), float(low), float(high), len(values))


def histogram(values: Array, bins: int = 40) -> Mapping[str, list[float]]:
    """Counts and edges for a figure."""
    counts, edges = np.histogram(values, bins=bins)
    return {"count": counts.tolist(), "edge": edges.round(4).tolist()}


Found = Mapping[str, Metric]

FEW = 100
"""Pairs below which no difference between two models should be read from the rates."""


def summary(found: Found, reach: Reach) -> str:
    """Accuracy against the ideal, what was flipped, and what stays out of reach."""
    right = found["ranking_accuracy"]
    sentences = [
        f"On {right.n} pairs the model by itself holds the chosen answer at least as likely as the "
        f"rejected one in {right}, per token in {found['ranking_accuracy_per_token']}."
    ]
    if "reward_accuracy" in found:
        sentences.append(
            f"Its reference did in {found['reference_ranking_accuracy']}. Relative to the "
            f"reference it prefers the chosen answer in {found['reward_accuracy']}."
        )
    if reach.stands_in:
        sentences.append(
            f"No bound is known for the objective {reach.stands_in}; what follows is for "
            f"{reach.title}."
        )
    start = "" if "reward_accuracy" in found else " that starts from this model"
    sentences.append(
        f"The optimum of {reach.title}{start}, unanimous raters counted as 1000 to 1, would rank "
        f"{found['idealized']} right: the alignment gap is {points(found['alignment_gap'])}."
    )
    flipped = found.get("flipped")
    if flipped is not None and flipped.n:
        sentences.append(
            f"Of the {flipped.n} pairs that the reference ranks wrong, training put {flipped} right"
            f"; of the others it put {found['unlearned']} wrong."
        )
    return " ".join(sentences)


def advice(found: Found, reach: Reach, alpha: Any) -> str:
    """What to try; nothing where nothing stands out."""
    said = []
    out = found["out_of_reach"]
    if (out.value or 0.0) > 0.1:
        limit = reach.facts(alpha)["limit"]
        lean = (
            "" if limit is None else f": the reference leans against them by over {limit:.3g} nats"
        )
        said.append(
            f"{out} of the pairs are out of reach of {reach.title}{lean}. Lower "
            "beta, supervise on the chosen answers first, or curate them out by difficulty."
        )
    flipped = found.get("flipped")
    if flipped is not None and flipped.high is not None and flipped.high < 0.5:
        said.append(
            "Most pairs that the reference ranks wrong still are: high reward accuracy does not "
            "mean that the model prefers the chosen answers. A lower loss on the hard pairs is "
            "needed: train longer on them, lower beta, or take gamma_dpo or a reference-free "
            "objective."
        )
    gap = found["alignment_gap"]
    if gap.high is not None and gap.high < 0:
        said.append(
            "The model ranks more pairs right than that optimum: trained on labels without dissent "
            "it went beyond odds of 1000 to 1. Check with samples and new pairs that it is not "
            "overfitted."
        )
    if (out.n or 0) < FEW:
        said.append(f"Fewer than {FEW} pairs: the intervals are too wide to compare models.")
    return " ".join(said)


def points(metric: Metric) -> str:
    """A difference of rates in percentage points, with its interval."""
    if metric.value is None:
        return "unscored"
    text = f"{100 * metric.value:.1f} points"
    if metric.low is None or metric.high is None:
        return text
    return f"{text} [{100 * metric.low:.1f}, {100 * metric.high:.1f}]"
