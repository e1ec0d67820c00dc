"""DSPO: matching the preference's score paints what is preferred more often."""

from __future__ import annotations

from collections.abc import Sequence

from trueline.reproduce.claim import Results, claim
from trueline.reproduce.runs import Arm
from trueline.reproduce.verdict import Effect

DSPO = Arm(
    "pictures", {"objective": "dspo", "options": {"beta": 1.0}, "rate": 4e-4}, "DSPO, beta 1"
)
SFT = Arm("pictures", {"objective": "diffusion_sft", "rate": 4e-4}, "fine-tuning")
DPO, GUARDED = (
    Arm(
        "pictures",
        {"objective": "diffusion_dpo", "options": {"beta": 2000.0}, "rate": 1e-4, **guard},
        f"Diffusion-DPO, beta 2000{title}",
    )
    for guard, title in (({}, ""), ({"sdpo_mu": 0.1}, ", SDPO safeguard"))
)


SCORES = Arm("scores", title="drawn predictions")
MATCHED = (
    "DSPO's correction minus the preference's gradient",
    "DSPO's loss minus matching that score",
    "score of RL's optimum minus data's plus preference's",
)


@claim(
    "score-is-reinforcement",
    paper="DSPO",
    statement="DSPO matches the score of what reinforcement learning would end at: the data's "
    "score plus the gradient of the log-chance of being preferred.",
    measured="Drawn predictions of pairs, float64: DSPO's correction minus the gradient, in the "
    "noise, of ln s(z); its loss minus the squared distance to that score; and on a line, the "
    "score of RL's optimum under the reward ln p(preferred) minus the two scores' sum.",
    arms=(SCORES,),
    shows={},
    caveat="Mathematics: a failure would be a mistake in Trueline. It holds for errors of single "
    "elements; averaged over a picture's elements, as the official code does, beta is tied to "
    "their number. That predictions stand for log-chances is the diffusion bound's assumption.",
)
def reinforcement(results: Results) -> Sequence[Effect]:
    return [results.extreme(SCORES, [name], "equal", name=name, margin=1e-9) for name in MATCHED]


@claim(
    "preferred-pictures",
    paper="DSPO",
    statement="DSPO paints what is preferred more often than Diffusion-DPO and fine-tuning do.",
    measured="Share of pictures that are what was asked for and bright, in the small world where "
    "the brighter of two pictures is preferred; 384 pictures a model from the same noise.",
    arms=(DSPO, SFT, DPO, GUARDED),
    shows={"valid and bright": "rate", "bright": "rate", "valid": "rate", "brightness": ""},
    caveat="At beta 1, far above the paper's .001 to .05, where DSPO is close to fine-tuning. "
    "Diffusion-DPO as published destroys a part of its pictures here, how many differs by seed; "
    "those it leaves are brighter than DSPO's. With SDPO's safeguard, which neither paper has, it "
    "is the best of the four: the last row, no part of the claim.",
)
def preferred(results: Results) -> Sequence[Effect]:
    return [
        results.difference(DSPO, arm, "valid and bright", "above", unit="rate")
        for arm in (SFT, DPO)
    ]
