"""Version 3: what the abstracts claim and no earlier version measured."""

from __future__ import annotations

from collections.abc import Sequence

from trueline.reproduce.claim import Results, claim
from trueline.reproduce.experiments.course import round_after
from trueline.reproduce.runs import Arm
from trueline.reproduce.verdict import Effect

NEAR_ROUNDS, ROUNDS = 8, 16
OFF, ON = (
    Arm(
        "course",
        {"policy": policy, "rounds": ROUNDS, "size": "small",
         "training": {"learning_rate": 5e-4}},
        f"DPO {policy}-policy",
    )
    for policy in ("off", "on")
)  # fmt: skip
NEAR = [round_after(count) for count in range(NEAR_ROUNDS + 1)]
FAR = [round_after(count) for count in range(NEAR_ROUNDS, ROUNDS + 1)]
SHOWS = {
    f"{name}{end}": unit
    for name, unit in (("ranking accuracy", "rate"), ("win rate", "rate"),
                       ("distance", "nats a token"))
    for end in (NEAR[0], NEAR[-1], FAR[-1])
} | {f"pairs{FAR[-1]}": ""}  # fmt: skip
COURSE = (
    f"DPO in {ROUNDS} rounds of 160 pairs, measured before the first and after each; the first "
    f"{NEAR_ROUNDS} are near the reference. Ranking accuracy is of written pairs about held-out "
    "things; win rate is how often an answer about one, drawn at temperature 1, is better than the "
    "base's, ties by half."
)
ARMS = (
    "Off-policy pairs are written ones of graded responses; on-policy ones are the best and the "
    "worst of four answers that the policy itself has just given. One rater labels both, and errs. "
)
CAVEAT = (
    "On-policy pairs are new in each round, off-policy ones are drawn from the same 960. Late "
    "rounds on-policy have fewer than 160 in some worlds, where the four answers are too often "
    "equally good. In a small world with a base of 45% of the demo's weights, tuned on seeds 100 "
    "and 101."
)


@claim(
    "ranking-goes-with-win-rate",
    paper="Ranking",
    version=3,
    statement="Near the reference, ranking accuracy goes with win rate.",
    measured=f"Pearson's correlation of the two along the first rounds, a seed at a time. {COURSE}",
    arms=(OFF, ON),
    shows=SHOWS,
    caveat="Two values that both rise with training go together, whatever joins them. " + CAVEAT,
)
def goes_with(results: Results) -> Sequence[Effect]:
    return [
        results.along(arm, NEAR, "win rate", "ranking accuracy", "above",
                      name=f"correlation near the reference, {arm.title}")
        for arm in (OFF, ON)
    ]  # fmt: skip


@claim(
    "win-rate-parts-from-ranking",
    paper="Ranking",
    version=3,
    statement="Farther from the reference, DPO's ranking accuracy goes less with win rate than "
    "near it.",
    measured=f"The same correlation along the last rounds minus along the first. {COURSE}",
    arms=(OFF,),
    shows=SHOWS,
    caveat="The paper has it turn negative there. " + CAVEAT,
)
def parts_from(results: Results) -> Sequence[Effect]:
    return [
        results.along(OFF, FAR, "win rate", "ranking accuracy", "below", minus=(OFF, NEAR),
                      name=f"correlation far minus near, {OFF.title}")
    ]  # fmt: skip


@claim(
    "on-policy-differs",
    paper="Ranking",
    version=3,
    statement="On-policy learning differs: it wins more often than off-policy learning, and its "
    "ranking accuracy goes with win rate farther from the reference.",
    measured=f"Win rate after the last round, and the correlation along the last rounds. {ARMS}"
    f"{COURSE}",
    arms=(ON, OFF),
    shows=SHOWS,
    caveat="DPO alone, in both; the paper's on-policy methods are others, too. " + CAVEAT,
)
def differs(results: Results) -> Sequence[Effect]:
    return [
        results.difference(ON, OFF, f"win rate{FAR[-1]}", "above", unit="rate"),
        results.along(ON, FAR, "win rate", "ranking accuracy", "above", minus=(OFF, FAR),
                      name=f"correlation far from the reference, {ON.title} minus {OFF.title}"),
    ]  # fmt: skip


LINE = Arm("likelihood", title="a line whose likelihood is known")


@claim(
    "estimated-likelihood-errs",
    paper="DSPO",
    version=3,
    statement="Diffusion-DPO's loss is an estimate of DPO's that errs where the likelihood is "
    "known; the score that DSPO matches does not err.",
    measured="On a line, where data are two bumps and the policy is what reinforcement learning "
    "ends at under a rising reward; Stable Diffusion's levels of noise, predictions in closed "
    "form. The estimate's error, a share of what is estimated, root mean square over 256 pairs, at "
    "the scale (beta) that makes it smallest; the mean of Diffusion-DPO's loss minus DPO's on the "
    "true log-ratios; beside both the same bound with the weights that make it exact. And the "
    "data's score plus the slope of the log-chance minus the score of the optimum, noised.",
    arms=(LINE,),
    shows={},
    caveat="Mathematics. How much it errs depends on the densities; here it is a few percent. That "
    "DSPO's score is right supposes that the chance of being preferred is known at every level of "
    "noise; DSPO reads it off its own predictions.",
)
def estimated(results: Results) -> Sequence[Effect]:
    exact, ratio, loss, score = (
        "bound with the likelihood's weights minus true log-ratio",
        "estimated log-ratio's error",
        "estimated loss minus DPO's",
        "DSPO's score minus that of RL's optimum",
    )
    return [
        results.extreme(LINE, [exact], "equal", name=exact, margin=1e-4),
        results.extreme(LINE, [ratio], "above", name=f"{ratio}, smallest", against=1e-3),
        results.extreme(LINE, [loss], "above", name=f"{loss}, smallest", against=1e-2),
        results.extreme(LINE, [score], "equal", name=score, margin=1e-9),
    ]
