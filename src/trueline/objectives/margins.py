"""Other losses on pairs with a reference: hinges, squares, and each completion against a target.

Throughout, u and v are the log-ratios of chosen and rejected, sums over tokens, nats; s the
logistic sigmoid.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch.nn.functional as F
from torch import Tensor

from trueline.logprobs import PairedLogProbs
from trueline.objectives.base import objective
from trueline.options import Positive, Range, Reduction


@objective(
    "ipo",
    layout="paired",
    equation="(u - v - 1 / (2 beta))^2",
    source="Azar et al. 2023, arXiv 2310.12036, eq. 17",
)
def ipo(pairs: PairedLogProbs, *, beta: Positive = 0.1, reduction: Reduction = "sum") -> Tensor:
    """Identity preference optimization: squared distance of the margin from its target.

    L = (u - v - 1/(2 beta))^2.

    Args:
        pairs: B pairs with reference log-probs.
        beta: the paper's tau, > 0; the target margin is 1 / (2 beta) nats.
        reduction: ``"sum"`` takes log-ratios of whole sequences, as the paper's equation;
            ``"mean"`` divides each by its completion's length, as TRL does.

    Returns:
        (B,) losses.

    Example:
        >>> from trueline.objectives.examples import PAIR  # u - v = 7, target 5
        >>> ipo(PAIR, beta=0.1).item()
        4.0

    Source: Azar et al. 2023, eq. 17.
    """
    chosen, rejected = pairs.chosen.log_ratio, pairs.rejected.log_ratio
    if reduction == "mean":
        chosen, rejected = chosen / pairs.chosen.length, rejected / pairs.rejected.length
    return (chosen - rejected - 1 / (2 * beta)) ** 2


@objective(
    "hinge",
    layout="paired",
    equation="max(0, 1 - beta (u - v))",
    source="Liu et al. 2023, arXiv 2309.06657 (RSO's hinge)",
)
def hinge(pairs: PairedLogProbs, *, beta: Positive = 0.1) -> Tensor:
    """A hinge on DPO's logit: pairs with a margin of 1 / beta nats or more no longer count.

    L = max(0, 1 - beta (u - v)). SLiC-HF's own loss, without reference, is ``slic``.

    Args:
        pairs: B pairs with reference log-probs.
        beta: scale of the logits, > 0.

    Returns:
        (B,) losses.

    Example:
        >>> from trueline.objectives.examples import PAIR
        >>> round(hinge(PAIR, beta=0.1).item(), 6)
        0.3

    Source: Liu et al. 2023 (RSO), the hinge on normalized likelihoods.
    """
    return F.relu(1 - beta * pairs.margin)


@objective(
    "sppo",
    layout="paired",
    equation="((u - 1 / (2 beta))^2 + (v + 1 / (2 beta))^2) / 2",
    source="Wu et al. 2024, arXiv 2405.00675, eq. 4.7, with win probabilities 1 and 0",
    aliases=("sppo_hard",),
)
def sppo(pairs: PairedLogProbs, *, beta: Positive = 0.1) -> Tensor:
    """Self-play preference optimization: each log-ratio has a target of its own, +-1/(2 beta).

    L = ((u - 1/(2 beta))^2 + (v + 1/(2 beta))^2) / 2, the mean over the pair's two completions; TRL
    takes their sum, twice as much. beta is 1 / eta of the paper.

    Args:
        pairs: B pairs with reference log-probs.
        beta: the targets are 1 / (2 beta) nats away from the reference, > 0.

    Returns:
        (B,) losses.

    Example:
        >>> from trueline.objectives.examples import PAIR  # (2 - 5)^2 / 2 + (-5 + 5)^2 / 2
        >>> sppo(PAIR, beta=0.1).item()
        4.5

    Source: Wu et al. 2024, eq. 4.7.
    """
    target = 1 / (2 * beta)
    chosen, rejected = pairs.chosen.log_ratio, pairs.rejected.log_ratio
    return ((chosen - target) ** 2 + (rejected + target) ** 2) / 2


@objective(
    "exo",
    layout="paired",
    equation="q ln(q / (1 - e)) + (1 - q) ln((1 - q) / e), q = s(beta (u - v))",
    estimates="KL(q || (1 - e, e)), minimum 0",
    source="Ji et al. 2024, arXiv 2402.00856, eq. 16 (EXO-pref, two completions)",
    aliases=("exo_pair",),
)
def exo(
    pairs: PairedLogProbs,
    *,
    beta: Positive = 0.1,
    label_smoothing: Annotated[float, Range(0, 0.5, open="both")] = 1e-3,
) -> Tensor:
    """Exact optimization: the reverse KL from the policy's preference to the smoothed label.

    L = q ln(q / (1 - e)) + (1 - q) ln((1 - q) / e), with q = s(beta (u - v)). DPO takes the same KL
    the other way round.

    Args:
        pairs: B pairs with reference log-probs.
        beta: scale of the logits, > 0.
        label_smoothing: e, in (0, 1/2); at 0 the loss would be infinite.

    Returns:
        (B,) losses.

    Example:
        >>> from trueline.objectives.examples import PAIR
        >>> round(exo(PAIR, beta=0.1).item(), 6)
        1.657292

    Source: Ji et al. 2024, eq. 16.
    """
    logits = beta * pairs.margin
    right, wrong = F.logsigmoid(logits), F.logsigmoid(-logits)
    first = right.exp() * (right - math.log1p(-label_smoothing))
    return first + wrong.exp() * (wrong - math.log(label_smoothing))


@objective(
    "nca",
    layout="paired",
    equation="-ln s(beta u) - (ln s(-beta u) + ln s(-beta v)) / 2",
    source="Chen et al. 2024, arXiv 2402.05369 (NCA, two completions, hard label)",
    aliases=("nca_pair",),
)
def nca(pairs: PairedLogProbs, *, beta: Positive = 0.1) -> Tensor:
    """Noise contrastive alignment: absolute rewards, so that the chosen one's likelihood stays up.

    L = -ln s(beta u) - (ln s(-beta u) + ln s(-beta v)) / 2.

    Args:
        pairs: B pairs with reference log-probs.
        beta: scale of the rewards, > 0.

    Returns:
        (B,) losses.

    Example:
        >>> from trueline.objectives.examples import PAIR
        >>> round(nca(PAIR, beta=0.1).item(), 6)
        1.234247

    Source: Chen et al. 2024, NCA for a pair.
    """
    chosen, rejected = beta * pairs.chosen.log_ratio, beta * pairs.rejected.log_ratio
    return -F.logsigmoid(chosen) - (F.logsigmoid(-chosen) + F.logsigmoid(-rejected)) / 2


@objective(
    "apo_zero",
    layout="paired",
    equation="1 - s(beta u) + s(beta v)",
    estimates="1 - TV(D+, D-)",
    source="D'Oosterlinck et al. 2024, arXiv 2408.06266, eq. 7",
)
def apo_zero(pairs: PairedLogProbs, *, beta: Positive = 0.1) -> Tensor:
    """Anchored preference optimization for chosen completions better than the model's own.

    L = 1 - s(beta u) + s(beta v): the chosen one goes up and the rejected one down, each from the
    reference; KTO on pairs with a baseline of 0.

    Args:
        pairs: B pairs with reference log-probs.
        beta: scale of the rewards, > 0.

    Returns:
        (B,) losses.

    Example:
        >>> from trueline.objectives.examples import PAIR
        >>> round(apo_zero(PAIR, beta=0.1).item(), 6)
        0.827707

    Source: D'Oosterlinck et al. 2024, eq. 7.
    """
    return (-beta * pairs.chosen.log_ratio).sigmoid() + (beta * pairs.rejected.log_ratio).sigmoid()


@objective(
    "apo_down",
    layout="paired",
    equation="s(beta u) + 1 - s(beta (u - v))",
    source="D'Oosterlinck et al. 2024, arXiv 2408.06266, eq. 8",
)
def apo_down(pairs: PairedLogProbs, *, beta: Positive = 0.1) -> Tensor:
    """Anchored preference optimization for chosen completions worse than the model's own.

    L = s(beta u) + 1 - s(beta (u - v)): both go down, the rejected one further.

    Args:
        pairs: B pairs with reference log-probs.
        beta: scale of the rewards, > 0.

    Returns:
        (B,) losses.

    Example:
        >>> from trueline.objectives.examples import PAIR
        >>> round(apo_down(PAIR, beta=0.1).item(), 6)
        0.881646

    Source: D'Oosterlinck et al. 2024, eq. 8.
    """
    return (beta * pairs.chosen.log_ratio).sigmoid() + (-beta * pairs.margin).sigmoid()
