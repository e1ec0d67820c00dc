"""Which prompts are harmful: as the data say, as a judge scores them, or by weak keywords;
and which of two responses is the better one, who says so, and how often a second opinion differs.

A judge scores a prompt from 1 (harmless) to 10 (most harmful); from ``THRESHOLD`` on it counts as
harmful, as in E-RLHF.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from trueline.curation.jobs.chunks import Chunk, Note, Notes
from trueline.curation.jobs.disk import DiskTable, digest
from trueline.curation.jobs.job import Job
from trueline.curation.near import flat
from trueline.errors import UserError
from trueline.records import Example, Safety, is_blank
from trueline.results import Metric
from trueline.stats import rate
from trueline.stats.resampling import share

PromptScorer: TypeAlias = Callable[[Sequence[str]], Sequence[float | None]]
"""Prompts to how harmful each is, 1 to 10; None where the judge cannot tell."""

THRESHOLD = 6.0
LABELED = 64  # prompts a judge is asked about together

WORDS = (
    "abuse", "ammunition", "assault", "attack", "bomb", "break into", "bribe", "bully", "burglar",
    "cheat", "counterfeit", "crime", "cyberattack", "ddos", "deceive", "drug", "drunk driv",
    "evade", "explosive", "extort", "fake id", "firearm", "forge", "fraud", "get away with",
    "grenade", "gun", "hack", "harass", "hate", "hijack", "hurt", "illegal", "insult", "kidnap",
    "kill", "launder", "malware", "manipulat", "murder", "my ex ", "overdose", "phish", "pirate",
    "poison", "porn", "prank", "punch", "racis", "ransom", "revenge", "rob ", "scam", "sexis",
    "shoplift", "slur", "smuggl", "sneak", "spy on", "stalk", "steal", "suicid", "terroris",
    "threaten", "torture", "traffick", "vandal", "violen", "virus", "weapon", "without getting",
)  # fmt: skip
"""Words of the keyword baseline. They say what a prompt mentions, not what it asks for."""

_PATTERN = re.compile(r"\b(" + "|".join(re.escape(word) for word in WORDS) + ")", re.IGNORECASE)


def keyword_scores(prompts: Sequence[str]) -> list[float | None]:
    """A WEAK baseline: 1 without any of ``WORDS``, 6 with one, up to 10 with five or more.

    It neither finds a harmful request in plain words nor passes over a harmless one ("kill a
    process"). Use it to try a pipeline, never to make data that a model is trained on.

    Example:
        >>> keyword_scores(["How do I bake bread?", "How do I steal, smuggle and bribe?"])
        [1.0, 8.0]
    """
    found = [len({m.lower() for m in _PATTERN.findall(prompt)}) for prompt in prompts]
    return [1.0 if not n else min(5.0 + n, 10.0) for n in found]


@dataclass(frozen=True)
class Labels:
    """Where safety labels come from.

    Labels that the data give are used first; ``scorer`` is asked about the others.

    Args:
        scorer: scores prompts, or None: given labels only.
        name: identifies the scorer in the manifest and for resuming.
        facts: what its scores depend on beside its name, JSON-ready.
        threshold: harmful from this score on.
        relabel: ask the scorer about prompts that have a label, too, and let it decide.
    """

    scorer: PromptScorer | None = None
    name: str = "given"
    threshold: float = THRESHOLD
    relabel: bool = False
    facts: Any = None

    def __post_init__(self) -> None:
        if not 1 <= self.threshold <= 10:
            raise UserError(f"the threshold lies between 1 and 10, got {self.threshold}")
        if self.relabel and self.scorer is None:
            raise UserError("relabel has no effect without a judge of prompts")
        if self.scorer is None and self.threshold != THRESHOLD:
            raise UserError("a threshold has no effect without a judge of prompts")

    @property
    def options(self) -> dict[str, Any]:
        """What the labels depend on, JSON-ready."""
        return {
            "by": self.name, "threshold": self.threshold, "relabel": self.relabel,
            "facts": self.facts,
        }  # fmt: skip

    def notes(self, job: Job) -> Notes:
        """Each example's label: ``{"safety", "score", "by"}``, None for what is not known."""
        return job.map("labeling", self._chunk, key=self.options, size=LABELED)

    def _chunk(self, chunk: Chunk) -> list[Note]:
        found: list[Note] = [
            {"safety": e.safety, "score": None, "by": "given" if e.safety else None}
            for e in chunk.examples
        ]
        if self.scorer is None:
            return found
        asked = [
            i
            for i, example in enumerate(chunk.examples)
            if (self.relabel or example.safety is None) and not is_blank(example.prompt)
        ]
        scores = self.scorer([flat(chunk.examples[i].prompt) for i in asked]) if asked else []
        if len(scores) != len(asked):
            raise UserError(f"the judge gave {len(scores)} scores for {len(asked)} prompts")
        for i, score in zip(asked, scores, strict=True):
            if score is None:
                continue
            if not 1 <= score <= 10:
                raise UserError(f"a judge of prompts scores from 1 to 10, got {score}")
            safety: Safety = "harmful" if score >= self.threshold else "safe"
            found[i] = {"safety": safety, "score": float(score), "by": self.name}
        return found


def keywords(threshold: float = THRESHOLD) -> Labels:
    """Labels by the keyword baseline, where the data give none."""
    return Labels(keyword_scores, "keywords (weak baseline)", threshold)


class Flagged:
    """Counts of harmful, safe and unknown prompts, and of who said so."""

    def __init__(self) -> None:
        self.safety: Counter[str] = Counter()
        self.by: Counter[str] = Counter()

    def add(self, note: Note) -> Safety | None:
        """Count one prompt; its label."""
        self.safety[note["safety"] or "unlabeled"] += 1
        if note["by"]:
            self.by[f"labeled by {note['by']}"] += 1
        label: Safety | None = note["safety"]
        return label

    @property
    def rate(self) -> Metric:
        """The share of harmful among labeled prompts."""
        harmful = self.safety["harmful"]
        return share("flagged harmful", harmful, harmful + self.safety["safe"])

    @property
    def counts(self) -> dict[str, int]:
        """Everything counted."""
        return {f"{name} prompts": n for name, n in sorted(self.safety.items())} | dict(self.by)


def no_label(example: Example) -> str:
    """Why an example without a label is dropped."""
    if is_blank(example.prompt):
        return "empty prompt: there is nothing to label"
    return "no safety label; give labels in the data, or a judge"


ResponseScorer: TypeAlias = Callable[[Sequence[str], Sequence[str]], Sequence[float | None]]
"""(prompts, responses) to how good each response is, higher is better; None where unknown."""


def given_order(example: Example, pair: tuple[int, int]) -> tuple[int, int] | None:
    """(chosen, rejected) as the data have it: by scores where there are any, else by its pairs.

    Never by the order of the rows. None where the data do not say.
    """
    first, second = pair
    a, b = (example.completions[i].score for i in pair)
    if a is not None and b is not None:
        return None if a == b else (first, second) if a > b else (second, first)
    for order in (pair, (second, first)):
        if order in example.pairs:
            return order
    return None


def by_scores(pair: tuple[int, int], scores: Sequence[float | None]) -> tuple[int, int] | None:
    """(chosen, rejected) by a judge's two scores; None for a tie or where one is missing."""
    a, b = scores
    if a is None or b is None or a == b:
        return None
    return pair if a > b else (pair[1], pair[0])


def judge_pairs(
    examples: Sequence[Example],
    pairs: Sequence[tuple[int, int] | None],
    scorer: ResponseScorer,
) -> list[list[float | None] | None]:
    """A judge's scores of both responses of each pair; None where there is no pair."""
    asked = [(e, i) for e, pair in zip(examples, pairs, strict=True) for i in pair or ()]
    prompts = [flat(e.prompt) for e, _ in asked]
    responses = [flat(e.completions[i].content) for e, i in asked]
    scores = iter(scorer(prompts, responses) if asked else [])
    return [None if pair is None else [next(scores), next(scores)] for pair in pairs]


class SecondLabels:
    """Another rater's labels of the same pairs, found by prompt and texts, kept on disk."""

    def __init__(self, examples: Iterable[Example]) -> None:
        self.table = DiskTable()
        batch: list[tuple[bytes, bytes]] = []
        for example in examples:
            for pair in example.pairs:
                chosen, rejected = (repr(example.completions[i].content) for i in pair)
                key = digest(flat(example.prompt), sorted((chosen, rejected)))
                batch.append((key, b"1" if chosen < rejected else b"0"))
            if len(batch) > 1000:
                self.table.put(batch)
                batch = []
        self.table.put(batch)

    def prefers(self, example: Example, order: tuple[int, int]) -> bool | None:
        """Whether the other rater prefers the first of the two, too; None where it is silent."""
        chosen, rejected = (repr(example.completions[i].content) for i in order)
        [found] = self.table.get([digest(flat(example.prompt), sorted((chosen, rejected)))])
        return None if found is None else (found == b"1") == (chosen < rejected)


@dataclass
class ErrorCount:
    """How often a second opinion calls a label wrong, group by group."""

    wrong: Counter[str] = field(default_factory=Counter)
    told: Counter[str] = field(default_factory=Counter)

    def add(self, groups: Iterable[str], agrees: bool | None) -> None:
        """One pair: whether the second opinion agrees, None where it is silent."""
        if agrees is None:
            return
        for group in groups:
            self.told[group] += 1
            self.wrong[group] += not agrees

    def metrics(self, groups: Sequence[str], what: str) -> list[Metric]:
        """The rate of each group, with Wilson's interval."""
        return [rate(f"{what}, {group}", self.wrong[group], self.told[group]) for group in groups]
