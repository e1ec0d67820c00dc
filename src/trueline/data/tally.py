"""Running counts over examples: 4 bytes a length and 8 bytes a hash, however long the texts."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Sequence, Sized
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from trueline.records import Completion, Example, Text
from trueline.results import Metric
from trueline.stats.resampling import share


class EncodedBranch(Protocol):
    """One completion's tokens."""

    @property
    def ids(self) -> Sized: ...


class Encoded(Protocol):
    """An example's tokens: the prompt's ids, and each completion's behind it."""

    @property
    def prompt(self) -> Sized: ...

    @property
    def branches(self) -> Sequence[EncodedBranch]: ...


@dataclass(frozen=True, slots=True)
class Lengths:
    """How long the texts of one part are: characters, or tokens where the name says so."""

    n: int
    min: int
    median: float
    mean: float
    p95: float
    max: int

    @classmethod
    def of(cls, values: array[int]) -> Lengths:
        """The summary of one length a text."""
        numbers = np.frombuffer(values, dtype=np.uint32)
        low, median, p95, high = np.percentile(numbers, [0, 50, 95, 100])
        return cls(
            len(values), int(low), float(median), float(numbers.mean()), float(p95), int(high)
        )


def size(text: Text) -> int:
    """Characters of a text, or of all contents of its messages."""
    return len(text) if isinstance(text, str) else sum(len(turn.content) for turn in text)


def _hash(*parts: object) -> int:
    digest = hashlib.blake2b(repr(parts).encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _distinct(hashes: array[int]) -> int:
    return len(np.unique(np.frombuffer(hashes, dtype=np.uint64))) if hashes else 0


class Tally:
    """What a single pass over the examples collects."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.safety: Counter[str] = Counter()
        self.lengths: dict[str, array[int]] = {}
        self.tokens: dict[str, array[int]] = {}
        self.prompts, self.rows, self.unordered = array("Q"), array("Q"), array("Q")
        self.texts: dict[str, array[int]] = {}

    def add(self, example: Example, encoded: Encoded | None) -> None:
        """Count one example, and its tokens where they are given."""
        self.counts["examples"] += 1
        self.counts["completions"] += len(example.completions)
        self.counts["conversational"] += example.conversational
        self.counts["multi_turn"] += _user_turns(example.prompt) > 1
        self.counts["empty_prompt"] += not size(example.prompt)
        self.safety[example.safety or "unlabeled"] += 1
        self.prompts.append(_hash(example.prompt))
        self._length(self.lengths, "prompt", size(example.prompt))
        if encoded is not None:
            self._length(self.tokens, "prompt", len(encoded.prompt))
        for index, role in _roles(example):
            content = example.completions[index].content
            self._length(self.lengths, role, size(content))
            self.texts.setdefault(role, array("Q")).append(_hash(content))
            if encoded is not None:
                self._length(self.tokens, role, len(encoded.branches[index].ids))
        self._statements(example)

    def _statements(self, example: Example) -> None:
        """What the row claims, once with and once without its direction."""
        for pair in example.pairs:
            chosen, rejected = (example.completions[i].content for i in pair)
            self.counts["pairs"] += 1
            self.counts["chosen_longer"] += size(chosen) > size(rejected)
            self.counts["unequal"] += size(chosen) != size(rejected)
            texts = (_hash(chosen), _hash(rejected))
            self.rows.append(_hash(example.prompt, *texts))
            self.unordered.append(_hash(example.prompt, *sorted(texts)))
        if not example.pairs:
            for completion in example.completions:
                self.rows.append(_hash(example.prompt, completion.content, completion.desirable))
                self.unordered.append(_hash(example.prompt, completion.content))

    @staticmethod
    def _length(where: dict[str, array[int]], part: str, length: int) -> None:
        where.setdefault(part, array("I")).append(length)

    def duplicates(self) -> dict[str, int]:
        """Repeated prompts, repeated statements, and statements made both ways around."""
        distinct = _distinct(self.rows)
        return {
            "prompts": len(self.prompts) - _distinct(self.prompts),
            "rows": len(self.rows) - distinct,
            "contradictions": distinct - _distinct(self.unordered),
        }

    def balance(self) -> dict[str, dict[str, int]]:
        """Counts of labels and of safety labels, where there are any."""
        found = {}
        labels = {name: len(self.texts.get(name, ())) for name in ("desirable", "undesirable")}
        if any(labels.values()):
            found["label"] = labels
        if set(self.safety) - {"unlabeled"}:
            found["safety"] = dict(self.safety)
        return found

    def rates(self) -> tuple[Metric, ...]:
        """Shares of rows, of pairs, and of the most frequent text of each part."""
        n, counts = self.counts["examples"], self.counts
        rates = [
            share(name, counts[name], n)
            for name in ("conversational", "multi_turn", "empty_prompt")
        ]
        if counts["pairs"]:
            rates.append(share("chosen_longer", counts["chosen_longer"], counts["unequal"]))
        for role, hashes in sorted(self.texts.items()):
            _, repeats = np.unique(np.frombuffer(hashes, dtype=np.uint64), return_counts=True)
            rates.append(share(f"same_{role}", int(repeats.max()), len(hashes)))
        return tuple(rates)


def _user_turns(prompt: Text) -> int:
    return 1 if isinstance(prompt, str) else sum(turn.role == "user" for turn in prompt)


def _roles(example: Example) -> list[tuple[int, str]]:
    """Each completion once for each part it plays: chosen, rejected, desirable, ..."""
    roles = {(chosen, "chosen") for chosen, _ in example.pairs}
    roles |= {(rejected, "rejected") for _, rejected in example.pairs}
    paired = {index for index, _ in roles}
    for index, completion in enumerate(example.completions):
        if completion.desirable is not None or index not in paired:
            roles.add((index, _label(completion)))
    return sorted(roles)


def _label(completion: Completion) -> str:
    if completion.desirable is None:
        return "completion"
    return "desirable" if completion.desirable else "undesirable"
