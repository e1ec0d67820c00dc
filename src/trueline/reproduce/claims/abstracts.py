"""What the papers' abstracts claim, and what became of it here; how the page came about.

The rows are in our own words, from the abstracts as far as they were to be had. None is left out
because it is hard: what is measured in a weaker form says so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

State = Literal["measured", "weakened", "on real text"]
STATES: tuple[State, ...] = ("measured", "weakened", "on real text")


@dataclass(frozen=True, slots=True)
class Asserted:
    """One claim of an abstract.

    Args:
        paper: a key of :data:`~trueline.reproduce.claim.PAPERS`.
        words: the claim, in our own words.
        state: measured as it stands, measured in a weaker form, or on real text alone, by no
            registered claim.
        by: which registered claims measure it.
        how: how it is measured, and what is weaker about it.
    """

    paper: str
    words: str
    state: State
    by: tuple[str, ...] = ()
    how: str = ""


def _rows(paper: str, *rows: tuple[str, State, str, str]) -> tuple[Asserted, ...]:
    return tuple(Asserted(paper, words, state, tuple(by.split()), how)
                 for words, state, by, how in rows)  # fmt: skip


TINY = "a sandbox model of four layers"
ASSERTED: Sequence[Asserted] = (
    *_rows(
        "KLDO",
        ("Alignment losses are estimates of a divergence between aligned and unaligned answers.",
         "measured", "minima-are-divergences", "On discrete distributions, exactly."),
        ("So separation of harmful and safe prompts emerges from alignment.", "weakened",
         "separation-emerges",
         "It grows; the sandbox's base knows the two apart before alignment."),
        ("KLDO, a KL-based method, is effective against the others.", "weakened",
         "separation-order attack-success-order separation-order-wide attack-order-at-matched-kl",
         f"In {TINY}, by plain attacks, in version 2 also at equal KL; GCG stands beside. The "
         "paper has 1B to 7B models."),
        ("Compliance-refusal data separate more than preference data.", "measured",
         "compliance-refusal-data", "For each of four objectives."),
        ("Compliance-refusal data make safer models.", "measured", "compliance-refusal-safer",
         "At equal steps and before either model refuses everything; over-refusal is not matched "
         "any closer."),
        ("A distance in the space of prompts quantifies the separation.", "measured",
         "separation-order compliance-refusal-data", "It is the measure of both."),
        ("That distance is a significant indicator of resilience.", "weakened",
         "separation-and-resilience resilience-at-two-sizes",
         "Within a seed over four objectives at equal steps, in version 2 over three in another "
         "world and with a smaller base; the paper pools models and objectives."),
    ),
    *_rows(
        "E-RLHF",
        ("A pretrained model mimics harmful behavior that its corpus holds.", "weakened",
         "base-mimics-its-corpus",
         "One corpus; the share of harmful recipes in it is not varied."),
        ("The chance of a jailbreak has a lower bound, and is unpreventable under its assumptions.",
         "measured", "jailbreak-bound", "Arithmetic, and where it says nothing."),
        ("E-RLHF costs no more training and goes with other methods.", "measured",
         "prefix-costs-no-training prefix-goes-with-kto", "Seconds, not memory; KTO alone."),
        ("E-RLHF is attacked with less success than RLHF, on AdvBench and HarmBench.", "weakened",
         "e-dpo-safer prefix-harmful-only",
         f"In {TINY} whose base was made cautious behind the prefix; asked directly and in "
         "wrapped forms."),
        ("It does not cost utility (MT-Bench).", "weakened", "e-dpo-safer",
         "Correct recipes in place of MT-Bench, which needs a model that can hold a conversation."),
    ),
    *_rows(
        "Entanglement",
        ("As the margin grows, the rejected answer's probability can rise.", "measured",
         "both-can-rise", "Where the theory holds, with a pair made for it."),
        ("As the margin grows, the chosen answer's probability can fall.", "measured",
         "suffix-drags-both-down", "In a trained transformer."),
        ("Margin losses couple the two, so that they move together.", "measured",
         "suffix-in-theory", "Where the theory holds."),
        ("It happens where the gradients' inner product is large beside their norms.", "weakened",
         "inner-product-foretells", "One step where the theory holds; no trained transformer."),
        ("Why inner products are large: what chosen and rejected share.", "measured",
         "suffix-in-theory suffix-drags-both-down", "By the length of the shared suffix."),
        ("It explains how objectives differ in training.", "measured", "objectives-that-protect",
         "CPO, DPOP and SLiC against DPO."),
        ("It suggests remedies.", "weakened", "normalized-remedy",
         "Trueline's reading of the remedy; the paper's formula was not available."),
    ),
    *_rows(
        "Ranking",
        ("Preference-tuned models rank under 60% of pairs right.", "on real text", "",
         "One small chat model on human labels, before and after DPO; the paper has 7B models."),
        ("The accuracy of a perfect optimum of DPO or RLHF can be computed.", "measured",
         "observed-under-idealized", "It is one side of that claim."),
        ("Real models stay far below it: an alignment gap.", "weakened",
         "observed-under-idealized gamma-trades",
         f"In {TINY}, on graded pairs with a rater who errs and on compliance-refusal data."),
        ("DPO is ill suited to mend even mild ranking errors of its reference.", "weakened",
         "mild-errors-stay", "On graded pairs with a rater who errs, learned for five epochs."),
        ("A formula tells how hard a pair is to learn.", "measured", "easy-pairs-flip",
         "Difficulty of pairs put right against those still wrong."),
        ("Near the reference, ranking accuracy goes with win rate.", "weakened",
         "ranking-goes-with-win-rate win-rate-parts-from-ranking",
         "Along one course of training in a sandbox, by true quality; the paper has checkpoints of "
         "large models and a judge."),
        ("So on-policy and off-policy learning differ.", "weakened", "on-policy-differs",
         "DPO on its own answers against DPO on given ones; no other on-policy method."),
    ),
    *_rows(
        "REAL",
        ("Pairs of dissimilar responses carry fewer label errors.", "measured",
         "dissimilar-pairs-fewer-errors", "Against random and similar pairs."),
        ("They align better: margin and win rate.", "weakened", "dissimilar-pairs-train-better",
         "Which of two responses the model rewards, in place of win rate on dialogue."),
        ("They save up to 65% of the annotators' work.", "weakened", "labels-saved",
         "35% of the labels against all of them, by which of two responses the model rewards."),
    ),
    *_rows(
        "DIL",
        ("RLHF is imitation learning of the chosen answers.", "measured", "rlhf-is-imitation",
         "Exactly, on discrete distributions."),
        ("Existing preference methods are special cases of it.", "measured",
         "methods-are-imitation", "Exactly: DPO, BCO and KLDO by NWJ."),
        ("DIL does better than they do.", "weakened", "dil-does-better",
         "Than DPO, by which of two responses the model rewards; the paper has benchmarks and 8B "
         "models."),
    ),
    *_rows(
        "DSPO",
        ("Preference tuning by matching scores continues what diffusion pretraining does; as "
         "reinforcement learning it is sound.", "measured", "score-is-reinforcement",
         "Exactly: what its loss matches is the score of reinforcement learning's optimum."),
        ("Other methods' estimates of the likelihood err, and DSPO's do not.", "measured",
         "estimated-likelihood-errs",
         "Exactly, on a line: Diffusion-DPO's estimate, and the score that DSPO matches."),
        ("DSPO paints what is preferred more often than others.", "weakened",
         "preferred-pictures", "Pictures of 8 by 8 and a rater of brightness in place of SD1.5, "
         "SDXL and human preference, at a beta far above the paper's."),
    ),
)  # fmt: skip

BEYOND: dict[str, str] = {
    "chosen-falls-least": "DIL: of the paper's body, not its abstract.",
    "begun-answers-defend": "Trueline's own: a defense against begun answers.",
    "begun-anywhere-defend": "Trueline's own, version 2: another such defense.",
    "begun-anywhere-carries-over": "Trueline's own, version 2: whether that one carries over.",
    "refusing-an-unseen-kind": "Trueline's own, version 2: harm of a kind that no data showed.",
    "searched-suffixes-succeed": "Trueline's own, version 2: GCG against what is refused.",
}
"""Registered claims that no abstract makes."""

BEFORE: dict[str, str] = {
    "minima-are-divergences": "supported",
    "separation-order": "undecided",
    "attack-success-order": "undecided",
    "compliance-refusal-data": "undecided",
    "separation-and-resilience": "not supported",
    "e-dpo-safer": "undecided",
    "prefix-harmful-only": "undecided",
    "jailbreak-bound": "supported",
    "suffix-in-theory": "supported",
    "suffix-drags-both-down": "undecided",
    "objectives-that-protect": "supported",
    "normalized-remedy": "supported",
    "observed-under-idealized": "undecided",
    "easy-pairs-flip": "undecided",
    "gamma-trades": "supported",
    "dissimilar-pairs-fewer-errors": "supported",
    "dissimilar-pairs-train-better": "undecided",
    "chosen-falls-least": "supported",
    "preferred-pictures": "undecided",
}
"""Verdicts of the last page before registration (version 0): five seeds, 0 to 4, older designs and
an older rule."""

HISTORY = """\
## How this page came about

What a reader should know before believing it:

- A first page (2026-11-21, 3 seeds, 85 of 105 runs) had 5 claims supported, 4 not supported and
  9 undecided. Not supported were `separation-order`, `separation-and-resilience`,
  `prefix-harmful-only` and `suffix-drags-both-down`.
- The designs were then changed with those verdicts in sight: the fast scale's epochs (2 to 5)
  and the steps of the suffix pairs (60 to 30 in the full scale); E-RLHF's data (preference to
  compliance-refusal), base (made cautious behind the prefix) and length (halfway); the ranking
  claims' data and arms; for DSPO the measure (bright to valid and bright) and the baseline
  (Diffusion-DPO as published, its safeguarded form listed beside it).
- They were changed on seeds 0, 1 and 2, which are among the five that were judged next. That
  page had 8 supported, 1 not supported and 10 undecided. So "not supported" fell from 4 to 1 in
  part because experiments were made in which the claims could show themselves.
- Its results of single seeds were not kept. Verdicts up to and including that page follow an
  older rule (each part by its own interval, no correction for their number; for
  `separation-and-resilience` forty models counted as independent, which decides in 40 to 47% of
  cases where nothing is there). The reversal it reports for that claim is a collapse: all
  alignments on preference data refuse nearly everything.
- `suffix-drags-both-down` and `normalized-remedy` stood on pairs whose prompts were text with a
  chat template's control tokens in it. Trueline reads such text as text, letter by letter, since
  rows can no longer spell control tokens; so those models were asked in a form they had never
  read. Prompts are messages now. Which of the older verdicts this touched is not known.
- Since then the seed is the unit, a paper's claims are corrected together, attacks are no longer
  averaged, models that refuse everything are left out where safety is compared, separation is read
  before the answer's first token and averaged over splits, and every design is registered
  (`studies/PREREGISTRATION.md`) before it is run on seeds that nobody has looked at.
- Version 2 (`studies/PREREGISTRATION-2.md`) was registered on 2026-11-22, when version 1 had
  judged all papers but Entanglement and DSPO. What was known then made it: the first defense held
  in half of the worlds, and there were no several kinds of harm, no second size of base, no
  comparison at equal KL and no GCG. Its worlds, its loss and its learning rate were tuned on the
  seeds 100 and 101. At these, an encoding (names spelled out) stayed unread by the base: it is
  measured, and no claim rests on it.
- Version 3 (`studies/PREREGISTRATION-3.md`) was registered on 2026-11-22, when versions 1 and 2
  were judged. It adds claims of the abstracts that had been left out, on eight seeds of its own,
  and puts none anew. Its learning rate and its rounds were tuned on the seeds 100 and 101. Its
  text gives each round 160 pairs; on-policy some late rounds had fewer, which stands with the
  claims.
- Verdicts of the page with five seeds are called version 0 here; the column "before" has them.

""".splitlines()


def asserted_table() -> list[str]:
    """The claims of the abstracts as Markdown, with what is beyond them."""
    counts = Counter(row.state for row in ASSERTED)
    words = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
    lines = ["## Every claim of the abstracts", "",
             f"{len(ASSERTED)} claims in our own words: {words}. Weakened ones are measured in a "
             "weaker form; what is [on real text](real-text.md) alone has no registered claim.", "",
             "| Paper | Claim | | Measured by | How, or why not |",
             "|---|---|---|---|---|"]  # fmt: skip
    for row in ASSERTED:
        by = ", ".join(f"`{name}`" for name in row.by)
        lines.append(f"| {row.paper} | {row.words} | {row.state} | {by} | {row.how} |")
    lines += ["", "Beyond the abstracts:", ""]
    return [*lines, *(f"- `{name}`: {why}" for name, why in BEYOND.items()), ""]
