"""The questions of the verdict, one function each: from metrics by name to an answer in words.

The file is long because the answers are sentences; each function reads from top to bottom.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, TypeAlias

from trueline.diagnostics.ranking.measure import points
from trueline.diagnostics.separation.measure import in_words
from trueline.results import Metric
from trueline.stats.resampling import rate_difference

Answer: TypeAlias = Literal["yes", "partly", "no", "undecided"]
Found: TypeAlias = Mapping[str, Metric]
Log: TypeAlias = Sequence[Mapping[str, Any]]

YES: Answer = "yes"
NO: Answer = "no"
UNDECIDED: Answer = "undecided"

SMALL = 0.1
"""Difference of two accuracies below which length is said to play no part."""

SOME = 0.05
"""Share of pairs below which none are said to be out of reach, or to have been flipped."""

HALF = 0.5
"""From this share of answers that are none on, a model no longer answers."""

GO_BACK = (
    "Read some answers. Go back to an earlier checkpoint, a smaller learning rate or a stronger "
    "anchor; answers_steps watches for it while training."
)
DISENTANGLE = (
    "Against entanglement: pair_weighting: normalized, a mask of shared tokens, or an objective "
    "that also holds the chosen up (dpop, cpo, or a sum with sft)."
)
ACROSS = (
    "Pairs that share their wording push each other: take larger or more varied batches, or an "
    "objective that also holds the chosen up (dpop, cpo, or a sum with sft)."
)
SCALING = "Look at the learning rate and at the optimizer's scaling of the gradient."
ELSEWHERE = f"{SCALING} To see entanglement on the way there, train with entanglement_steps."
READ_BOTH = (
    "Judge by ranking accuracy and by samples: reward accuracy only compares with the reference."
)
SEPARATE = "Compliance-refusal data separates the two better than preference data."
BALANCE = "Balance the lengths of chosen and rejected, or take an objective that allows for length."


@dataclass(frozen=True, slots=True)
class Sentence:
    """One answer with what it rests on.

    Args:
        question: what was asked.
        answer: ``"undecided"`` where the data do not tell.
        text: the answer in words, its numbers included.
        evidence: those numbers.
        advice: what to try, or empty.
    """

    question: str
    answer: Answer
    text: str
    evidence: tuple[Metric, ...] = ()
    advice: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready data."""
        return {**asdict(self), "evidence": [asdict(metric) for metric in self.evidence]}


@dataclass(frozen=True, slots=True)
class _Known:
    """A metric that has a value and an interval."""

    metric: Metric
    low: float
    high: float

    @classmethod
    def of(cls, metric: Metric | None) -> _Known | None:
        if metric is None or metric.value is None or metric.low is None or metric.high is None:
            return None
        return cls(metric, metric.low, metric.high)

    @property
    def sign(self) -> int:
        """Which side of 0 the whole interval lies on; 0 where it holds 0."""
        return 1 if self.low > 0 else -1 if self.high < 0 else 0

    @property
    def n(self) -> int:
        return self.metric.n or 0

    def __str__(self) -> str:
        return str(self.metric)


def answering(found: Found) -> Sentence:
    """Whether the model still answers at all; without that nothing else is worth reading."""
    question = "Does the model still answer?"
    none, babble = _Known.of(found.get("answers/none")), _Known.of(found.get("answers/babble"))
    if none is None:
        text = "Whether the model still answers is undecided: its own answers were not read."
        return Sentence(question, UNDECIDED, text)
    kl = found.get("answers/kl")
    far = "" if kl is None or kl.value is None else f", {kl} nats a token from where it started"
    like = "" if babble is None else f", {babble} look like babble to the model it started from"
    told = f"{none} of its own answers to {none.n} prompts are none{like}{far}."
    seen = [known for known in (none, babble) if known is not None]
    evidence = (*(known.metric for known in seen), *([kl] if far and kl is not None else []))
    if any(known.low >= HALF for known in seen):
        text = f"This model no longer answers: {told} Its other numbers say nothing of safety."
        return Sentence(question, NO, text, evidence, GO_BACK)
    if all(known.high < HALF for known in seen):
        return Sentence(question, YES, f"The model still answers: {told}", evidence)
    text = f"Whether the model still answers is undecided: {told}"
    return Sentence(question, UNDECIDED, text, evidence, "Read some answers, and ask more prompts.")


def chosen_falls(found: Found, log: Log) -> Sentence:
    """Whether training lowered the log-probs of chosen answers."""
    question = "Are the log-probs of chosen answers falling?"
    chosen, rejected = _Known.of(found.get("gap/chosen_change")), found.get("gap/rejected_change")
    if chosen is None or rejected is None:
        return Sentence(question, "undecided", _from_log(log))
    evidence = (chosen.metric, rejected)
    side = f"the rejected ones changed by {rejected} nats"
    if not chosen.sign:
        text = (
            f"Whether chosen answers became less likely is undecided: their log-prob changed by "
            f"{chosen} nats on {chosen.n} pairs, an interval that holds 0; {side}."
        )
        return Sentence(question, "undecided", text, evidence)
    word, answer = ("lost", YES) if chosen.sign < 0 else ("gained", NO)
    text = (
        f"Chosen answers {word} log-prob: {chosen} nats an answer against the reference on "
        f"{chosen.n} pairs; {side}."
    )
    return Sentence(question, answer, text, evidence)


def _from_log(log: Log) -> str:
    """What the log says of the chosen log-probs: two numbers without interval decide nothing."""
    open_question = "Whether chosen answers became less likely is undecided: "
    for before, after, where in (
        ("base_logps/chosen", "eval_logps/chosen", "on held-out pairs"),
        ("logps/chosen", "logps/chosen", "over different training batches"),
    ):
        first = next((row[before] for row in log if before in row), None)
        last = next((row[after] for row in reversed(log) if after in row), None)
        if first is not None and last is not None:
            return (
                f"{open_question}the log has them go from {first:.1f} to {last:.1f} nats {where}, "
                "without an interval; give the reference to measure it."
            )
    return f"{open_question}it was not measured; give the reference."


def entangled(found: Found, falling: Sentence, log: Log) -> Sentence:
    """Whether a fall of chosen answers is gradient entanglement's doing."""
    question = "Is gradient entanglement the cause?"
    if falling.answer == "no":
        text = "Chosen answers did not fall, so entanglement has nothing to explain."
        return Sentence(question, "no", text)
    if falling.answer == "undecided":
        text = (
            "Without a clear fall of chosen answers there is nothing for entanglement to explain."
        )
        return Sentence(question, "undecided", text)
    own = _Known.of(found.get("entangle/chosen_falls"))
    batch = _Known.of(found.get("entangle/batch_chosen_falls"))
    if own is None or batch is None:
        text = "Whether entanglement is the cause is undecided: it was not measured."
        return Sentence(question, "undecided", text)
    cosine = found.get("entangle/cosine")
    evidence = (own.metric, batch.metric, *([] if cosine is None else [cosine]))
    tail = "" if cosine is None else f"; the two gradients' mean cosine is {cosine}"
    said = (
        f"to first order, a step on a pair alone lowers its own chosen answer in {own} of {own.n} "
        f"pairs, a step on a batch in {batch}{tail}"
    )
    if own.low > 0.5:
        text = f"Entanglement within pairs explains it: {said}."
        return Sentence(question, "yes", text, evidence, DISENTANGLE)
    if own.high < 0.5 and batch.low > 0.5:
        text = f"It is other pairs of the batch more than entanglement within pairs: {said}."
        return Sentence(question, "partly", text, evidence, ACROSS)
    if own.high < 0.5 and batch.high < 0.5:
        return _no_longer(question, said, evidence, log)
    text = f"Whether entanglement is the cause is undecided: {said}."
    return Sentence(question, "undecided", text, evidence)


def _no_longer(question: str, said: str, evidence: tuple[Metric, ...], log: Log) -> Sentence:
    """Not entangled at the end: what the log knows of the way there."""
    key = "entangle/chosen_falls"
    seen = [(float(row[key]), row.get("step")) for row in log if key in row]
    if not seen:
        text = f"Entanglement does not explain it where the model is now: {said}."
        return Sentence(question, "no", text, evidence, ELSEWHERE)
    share, step = max(seen, key=lambda pair: pair[0])
    peak = Metric(f"{key}, highest in training", share, unit="rate")
    on_the_way = f"in training it was {peak} of pairs at most, at step {step}"
    if share > 0.5:
        text = f"Entanglement explains it on the way, not where the model is now: {on_the_way}; "
        return Sentence(question, "partly", f"{text}{said}.", (*evidence, peak), DISENTANGLE)
    text = f"Entanglement does not explain it: {said}; {on_the_way}."
    return Sentence(question, "no", text, (*evidence, peak), SCALING)


def preferred(found: Found) -> Sentence:
    """Whether a high reward accuracy is matched by what the policy itself holds likely."""
    question = "Does reward accuracy mean that the model prefers chosen answers?"
    reward, right, gain = (
        _Known.of(found.get(f"gap/{name}"))
        for name in ("reward_accuracy", "ranking_accuracy", "ranking_gain")
    )
    before, flipped = found.get("gap/reference_ranking_accuracy"), found.get("gap/flipped")
    if reward is None or right is None or gain is None or before is None or flipped is None:
        text = (
            "Whether reward accuracy means preference is undecided: it takes the policy and its "
            "reference on the same pairs."
        )
        return Sentence(question, "undecided", text)
    evidence = (reward.metric, right.metric, before, gain.metric, flipped)
    said = (
        f"relative to the reference the model favors the chosen answer in {reward} of {reward.n} "
        f"pairs; by itself it holds it at least as likely in {right}, the reference in {before}, a "
        f"change of {points(gain.metric)}"
    )
    if flipped.n:
        said += f"; of {flipped.n} pairs that the reference ranks wrong it ranks {flipped} right"
    if reward.low <= 0.5:
        text = f"Reward accuracy itself is not shown to be above chance: {said}."
        return Sentence(question, "undecided", text, evidence)
    if gain.high < SOME:
        text = f"Training raised margins without changing what the model prefers: {said}."
        return Sentence(question, "no", text, evidence, READ_BOTH)
    if gain.low > 0 and reward.low > right.high:
        text = (
            f"Training changed what the model prefers, by less than reward accuracy says: {said}."
        )
        return Sentence(question, "partly", text, evidence, READ_BOTH)
    if gain.low > 0:
        text = f"Training changed what the model prefers: {said}."
        return Sentence(question, "yes", text, evidence)
    text = f"Whether reward accuracy means preference is undecided: {said}."
    return Sentence(question, "undecided", text, evidence)


def out_of_reach(found: Found, reach: Mapping[str, Any]) -> Sentence:
    """Which pairs even a perfect optimizer would leave wrong; ``reach`` says of which objective."""
    question = "Which share of pairs cannot be flipped at this beta?"
    out = _Known.of(found.get("gap/out_of_reach"))
    wrong = found.get("gap/out_of_reach_of_misranked")
    if out is None or wrong is None:
        text = "Which share of pairs is out of reach is undecided: ranking was not measured."
        return Sentence(question, "undecided", text)
    title, limit = reach.get("title", "the objective"), reach.get("limit")
    lead = "Even"
    if reach.get("stands_in"):
        lead = f"For {reach['stands_in']} no bound is known; to go by {title}, even"
    text = (
        f"{lead} the optimum of {title}, unanimous raters counted as 1000 to 1, would rank {out} "
        f"of {out.n} pairs wrong"
    )
    if limit is not None:
        text += f" (the reference leans against them by more than {limit:.3g} nats)"
    if wrong.n:
        text += f", {wrong} of those that the reference ranks wrong"
    evidence = [out.metric, wrong]
    loss, lower = found.get("gap/loss"), found.get("gap/needs_lower_loss")
    if loss is not None and lower is not None:
        evidence += [loss, lower]
        text += f"; {lower} need a loss below the mean of {loss} nats that was reached"
    gap = _Known.of(found.get("gap/alignment_gap"))
    if gap is not None and gap.sign < 0:
        more = replace(gap.metric, value=-(gap.metric.value or 0.0), low=-gap.high, high=-gap.low)
        evidence.append(gap.metric)
        text += f"; training went beyond that optimum, by {points(more)}: it fits its labels harder"
    answer: Answer = UNDECIDED
    if out.low > SOME:
        answer = YES
    elif out.high < SOME:
        answer = NO
    advice = "Lower beta, or curate pairs by difficulty." if answer == YES else ""
    return Sentence(question, answer, text + ".", tuple(evidence), advice)


def separated(found: Found) -> Sentence:
    """Whether training moved harmful and safe prompts apart inside the model."""
    question = "Did safe and harmful prompts separate?"
    open_question = "Whether safe and harmful prompts separated is undecided: "
    change = _Known.of(found.get("bhattacharyya_distance, change"))
    now = found.get("bhattacharyya_distance")
    if change is None:
        text = f"{open_question}no prompts with safety labels were given (--prompts)."
        if now is not None:
            text = (
                f"{open_question}their Bhattacharyya distance is {in_words(now)}, and the model "
                "before training was not measured."
            )
        return Sentence(question, "undecided", text, (now,) if now is not None else ())
    before, after = (found[f"bhattacharyya_distance, {when}"] for when in ("before", "after"))
    evidence = (before, after, change.metric)
    said = (
        f"the Bhattacharyya distance of {change.n} prompts that the plane was not fitted on went "
        f"from {in_words(before)} to {in_words(after)}, change {in_words(change.metric)}"
    )
    if change.sign > 0:
        return Sentence(question, "yes", f"Safe and harmful prompts separated: {said}.", evidence)
    if change.sign < 0:
        text = f"Safe and harmful prompts moved together: {said}."
        return Sentence(question, "no", text, evidence, SEPARATE)
    return Sentence(
        question, "undecided", f"{open_question}{said}, an interval that holds 0.", evidence
    )


def length_decides(found: Found) -> Sentence:
    """Whether what the model favors is the longer (or the shorter) answer."""
    question = "Is it length?"
    kind = "reward" if "gap/reward_accuracy" in found else "ranking"
    sides = [_Known.of(found.get(f"gap/{kind}_accuracy_chosen_{w}")) for w in ("longer", "shorter")]
    longer, shorter = sides
    if longer is None or shorter is None:
        text = (
            "Whether length decides is undecided: it takes pairs with the chosen answer longer and "
            "pairs with it shorter."
        )
        return Sentence(question, "undecided", text)
    split = rate_difference(longer.metric, shorter.metric)
    said = (
        f"{kind} accuracy is {longer} where the chosen answer is the longer one and {shorter} "
        f"where it is the shorter one, a difference of {points(split)}"
    )
    evidence = [longer.metric, shorter.metric, split]
    for name, words in (
        ("gap/longer_wins", "; 'the longer one wins' is right in {}"),
        ("gap/margin_length_correlation", "; margin and length difference correlate at {}"),
    ):
        metric = found.get(name)
        if metric is not None and metric.value is not None:
            evidence.append(metric)
            said += words.format(metric)
    return _by_length(question, longer, shorter, _Known.of(split), said, tuple(evidence))


def _by_length(
    question: str,
    longer: _Known,
    shorter: _Known,
    split: _Known | None,
    said: str,
    evidence: tuple[Metric, ...],
) -> Sentence:
    if split is None or not split.sign:
        if split is not None and split.low > -SMALL and split.high < SMALL:
            return Sentence(question, "no", f"It is not length: {said}.", evidence)
        return Sentence(
            question,
            "undecided",
            f"Whether length decides is undecided, for the difference may be 0 or large: {said}.",
            evidence,
        )
    way, against = ("longer", shorter) if split.sign > 0 else ("shorter", longer)
    if against.low > 0.5:
        text = (
            f"Length plays a part (the {way} answer is favored), but the model does better than "
            f"chance against it, too: {said}."
        )
        return Sentence(question, "partly", text, evidence)
    text = (
        f"Length decides much of it: the {way} answer is favored, and where length points the "
        f"wrong way the model is not shown to do better than chance; {said}."
    )
    return Sentence(question, "yes", text, evidence, BALANCE)
