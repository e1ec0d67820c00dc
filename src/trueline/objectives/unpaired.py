"""Objectives on single completions, desirable or not, as a classifier would tell them apart.

r = beta * log-ratio is a completion's reward. Losses are averaged over the batch, as in TRL; where
both classes are equally many, that is half of E+ + E-, the means over the classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from trueline.logprobs import CompletionLogProbs, UnpairedLogProbs
from trueline.objectives.base import Statistic, objective
from trueline.options import NonNegative, Positive


def _kto_baseline(mismatched: CompletionLogProbs) -> Tensor:
    """z0 / beta = max(0, mean log-ratio of mismatched completions), nats."""
    return mismatched.log_ratio.mean().clamp(min=0)


@objective(
    "kto",
    layout="unpaired",
    equation="lambda (1 - s(+-(r - z0))), r = beta log-ratio, z0 = beta KL",
    estimates="1 - TV(D+, D-) as E+ plus E-",
    source="Ethayarajh et al. 2024, arXiv 2402.01306, eq. 8",
    statistic=Statistic("baseline", _kto_baseline, of="mismatched"),
)
def kto(
    batch: UnpairedLogProbs,
    *,
    beta: Positive = 0.1,
    desirable_weight: NonNegative = 1.0,
    undesirable_weight: NonNegative = 1.0,
    baseline: Tensor | float = 0.0,
) -> Tensor:
    """Kahneman-Tversky optimization: a saturating gain over a baseline shared by the batch.

    L = lambda_D (1 - s(r - z0)) on desirable, lambda_U (1 - s(z0 - r)) on undesirable completions,
    with r = beta * log-ratio and z0 = beta * baseline.

    Args:
        batch: B labeled completions with reference log-probs.
        beta: scale of the rewards, > 0.
        desirable_weight: lambda_D.
        undesirable_weight: lambda_U.
        baseline: the KL estimate, nats: max(0, mean log-ratio of completions behind other
            examples' prompts), over the whole effective batch; detached.

    Returns:
        (B,) losses.

    Example:
        >>> from trueline.objectives.examples import BATCH  # rewards .2, -.1 and .1, -.5
        >>> [round(loss, 6) for loss in kto(BATCH).tolist()]
        [0.450166, 0.524979, 0.524979, 0.377541]

    Source: Ethayarajh et al. 2024, eq. 8.
    """
    gain = beta * (batch.log_ratio - baseline)
    sign = torch.where(batch.desirable, 1.0, -1.0).to(gain)
    weight = torch.where(batch.desirable, desirable_weight, undesirable_weight).to(gain)
    return weight * torch.sigmoid(-sign * gain)


@objective(
    "apo_zero_unpaired",
    layout="unpaired",
    equation="lambda (1 - s(+-r)), r = beta log-ratio",
    estimates="1 - TV(D+, D-) as E+ plus E-",
    source="D'Oosterlinck et al. 2024, arXiv 2408.06266, eq. 7, each completion by itself",
)
def apo_zero_unpaired(
    batch: UnpairedLogProbs,
    *,
    beta: Positive = 0.1,
    desirable_weight: NonNegative = 1.0,
    undesirable_weight: NonNegative = 1.0,
) -> Tensor:
    """KTO without a baseline: desirable completions up, undesirable ones down, from the reference.

    L = lambda_D (1 - s(r)) on desirable, lambda_U s(r) on undesirable completions.

    Args:
        batch: B labeled completions with reference log-probs.
        beta: scale of the rewards, > 0.
        desirable_weight: lambda_D.
        undesirable_weight: lambda_U.

    Returns:
        (B,) losses.

    Example:
        >>> from trueline.objectives.examples import BATCH
        >>> bool((apo_zero_unpaired(BATCH) == kto(BATCH, baseline=0.0)).all())
        True

    Source: D'Oosterlinck et al. 2024, eq. 7.
    """
    return kto(
        batch,
        beta=beta,
        desirable_weight=desirable_weight,
        undesirable_weight=undesirable_weight,
    )


def _bco_shift(batch: UnpairedLogProbs, *, beta: float) -> Tensor:
    """(E+ r + E- r) / 2: the midpoint of the two classes' rewards."""
    reward = beta * batch.log_ratio
    return (batch.desirable_mean(reward) + batch.undesirable_mean(reward)) / 2


@objective(
    "bco",
    layout="unpaired",
    equation="-ln s(+-(r - d)), r = beta log-ratio, d = (E+ r + E- r) / 2 as a moving average",
    estimates="ln 4 - 2 JS(D+, D-) as E+ plus E-",
    source="Jung et al. 2024, arXiv 2404.04656, eq. 10",
    statistic=Statistic("shift", _bco_shift, decay=0.9),
    aliases=("bco_pair",),
)
def bco(batch: UnpairedLogProbs, *, beta: Positive = 0.1, shift: Tensor | float = 0.0) -> Tensor:
    """Binary classifier optimization: logistic classification of completions by reward.

    L = -ln s(r - d) on desirable, -ln s(d - r) on undesirable completions, r = beta * log-ratio.
    TRL's bco_pair is without d, and adds a pair's two losses where this takes their mean; its
    former BCO trainer takes d as the mean of all rewards seen, not a moving average.

    Args:
        batch: B labeled completions with reference log-probs.
        beta: scale of the rewards, > 0.
        shift: d, the moving average of (E+ r + E- r) / 2 over effective batches; detached. It is
            part of the published method; without it (0) rewards are not centered.

    Returns:
        (B,) losses.

    Example:
        >>> from trueline.objectives.examples import BATCH
        >>> round(bco(BATCH).mean().item(), 6)
        0.640252

    Source: Jung et al. 2024, eq. 10.
    """
    reward = beta * batch.log_ratio - shift
    return -F.logsigmoid(torch.where(batch.desirable, reward, -reward))
