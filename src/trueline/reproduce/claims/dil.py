"""DIL: imitation by density ratios lets the chosen's likelihood fall least."""

from __future__ import annotations

from collections.abc import Sequence

from trueline.reproduce.claim import Results, claim
from trueline.reproduce.claims.arms import DIL, DPO, IPO, RATED, RATED_DIL, SIMPO
from trueline.reproduce.runs import Arm
from trueline.reproduce.verdict import Effect

IMITATION = Arm("imitation", title="discrete distributions")
IDENTITIES = (
    "RLHF's objective minus its KL from the chosen",
    "DPO minus contrastive imitation",
    "BCO minus imitation by classification",
    "KLDO by NWJ minus imitation by unnormalized KL",
)


@claim(
    "rlhf-is-imitation",
    paper="DIL",
    statement="Under the reward ln(chosen / reference), RLHF imitates the chosen answers.",
    measured="Six answers, a reference and a distribution of the chosen drawn at each seed: RLHF's "
    "optimum (beta 1) found by L-BFGS, minus the chosen's distribution; and its objective at some "
    "policy minus that policy's KL from the chosen.",
    arms=(IMITATION,),
    shows={},
    caveat="Mathematics: a failure would be a mistake in Trueline.",
)
def imitates(results: Results) -> Sequence[Effect]:
    first = "RLHF's optimum minus the chosen's distribution"
    return [
        results.extreme(IMITATION, [name], "equal", name=name, margin=margin)
        for name, margin in ((first, 1e-5), (IDENTITIES[0], 1e-9))
    ]


@claim(
    "methods-are-imitation",
    paper="DIL",
    statement="Existing preference losses are special cases of imitation by density ratios.",
    measured="Losses on drawn log-ratios, float64: DPO minus imitation by contrast, BCO (shift 0, "
    "beta 1) minus imitation by classification, KLDO by NWJ (shifted by 1) minus imitation by "
    "unnormalized KL, sums over a completion in place of means.",
    arms=(IMITATION,),
    shows={},
    caveat="Mathematics: a failure would be a mistake in Trueline. The released code averages over "
    "tokens, with which none of them is exactly the same.",
)
def special_cases(results: Results) -> Sequence[Effect]:
    return [
        results.extreme(IMITATION, [name], "equal", name=name, margin=1e-9)
        for name in IDENTITIES[1:]
    ]


@claim(
    "dil-does-better",
    paper="DIL",
    statement="DIL's model rewards the better response more often than DPO's does.",
    measured="Share of pairs of responses about held-out things, truly labeled, whose better "
    "response's log-prob rose more; after training on pairs labeled by a rater who errs.",
    arms=(RATED_DIL, RATED),
    shows={
        "held-out pairs rewarded right": "rate",
        "correct answers": "rate",
        "harmful requests refused": "rate",
    },
    caveat="The paper's benchmarks need models that can hold a conversation. Recipes are of equal "
    "length here, refusals are not: DIL averages over tokens.",
)
def better(results: Results) -> Sequence[Effect]:
    return [
        results.difference(
            RATED_DIL, RATED, "held-out pairs rewarded right", "above", unit="rate"
        )
    ]  # fmt: skip


@claim(
    "chosen-falls-least",
    paper="DIL",
    statement="The chosen answers' likelihood falls least under DIL.",
    measured="Mean change of the chosen's log-prob over training pairs, DIL (LSIF) minus DPO, "
    "SimPO and IPO, after alignment on preference data.",
    arms=(DIL, DPO, SIMPO, IPO),
    shows={"chosen change": "nats", "rejected change": "nats", "ranking accuracy": "rate"},
    caveat="At one learning rate for all; DIL's length-averaged ratios make its steps smaller, and "
    "who moves least falls least.",
    on_recipe=True,
)
def falls_least(results: Results) -> Sequence[Effect]:
    return [
        results.difference(DIL, arm, "chosen change", "above", unit="nats")
        for arm in (DPO, SIMPO, IPO)
    ]
