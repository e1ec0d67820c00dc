"""Which prompts are harmful: as the data say, as a judge scores them, or by weak keywords.

A judge scores a prompt from 1 (harmless) to 10 (most harmful); from ``THRESHOLD`` on it counts as
harmful, as in E-RLHF.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from trueline.curation.jobs.chunks import Chunk, Note, Notes
from trueline.curation.jobs.job import Job
from trueline.curation.texts import flat
from trueline.errors import UserError
from trueline.records import Example, Safety, is_blank
from trueline.results import Metric
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
