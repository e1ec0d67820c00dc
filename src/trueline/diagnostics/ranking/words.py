"""What the ranking metrics say, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trueline.diagnostics.ranking.reach import Reach
from trueline.results import Metric

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
