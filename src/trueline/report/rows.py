"""The judged answers behind the rates: which rows a rate counts, and how they travel in the page.

A rate opens its rows by a permalink, ``#rows?model=kldo&measure=asr&attack=prefill``; the page
counts them again, so that what is read and what is counted are one thing. All that is short is in
one table, texts in chunks of their own, each compressed (gzip, base64), and unpacked only when a
row of it is looked at. Up to :data:`ONE_FILE` rows they stand inside the page; beyond, the chunks
lie in a folder beside it.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias
from urllib.parse import urlencode

from trueline.evaluation.harness.log import Judgement
from trueline.evaluation.harness.store import digest
from trueline.evaluation.harness.summarize import metric_name
from trueline.report.drawing.style import visible
from trueline.runs.record import Key

ONE_FILE = 5_000
"""Rows up to which everything is in one file."""

CHUNK = 250
"""Rows whose texts are packed together."""

Place: TypeAlias = tuple[str, str, str]
Query: TypeAlias = Mapping[str, str]
FLAGS = ("truncated", "empty", "unparsable")
SANDBOX = {"over-refusal": "over_refusal", "correct answers": "utility"}
"""The sandbox's own rates of safe prompts, by measure."""


def link(query: Query) -> str:
    """The permalink of some rows, or an empty string.

    Example:
        >>> link({"model": "kldo", "measure": "asr", "attack": "two words"})
        '#rows?model=kldo&measure=asr&attack=two+words'
    """
    told = {name: visible(value) for name, value in query.items() if value}
    return f"#rows?{urlencode(told)}" if told else ""


@dataclass(frozen=True)
class Rows:
    """Every model's judged answers, a row a prompt as it was asked, side by side over models.

    Args:
        judged: by model's name, its rows of the log.

    Example:
        >>> one = Judgement(id="7", benchmark="mine", attack="direct", judge="exact", prompt="q",
        ...                 answer="no.", success=False, harmful=True)
        >>> rows = Rows({"base": [one]})
        >>> len(rows), rows.behind("base", "judged by exact", "attack success, mine, direct")
        (1, {'model': 'base', 'judge': 'exact', 'measure': 'asr', 'benchmark': 'mine', \
'attack': 'direct'})
    """

    judged: Mapping[str, Sequence[Judgement]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.places)

    @cached_property
    def places(self) -> Mapping[Place, Judgement]:
        """Each prompt as it was asked, by benchmark, id and attack, with some model's judgement."""
        found: dict[Place, Judgement] = {}
        for rows in self.judged.values():
            for row in rows:
                found.setdefault(_place(row), row)
        return found

    @property
    def only_attack(self) -> tuple[str, str] | None:
        """Benchmark and attack, where there is one of each."""
        every = {
            (r.benchmark, r.attack) for rows in self.judged.values() for r in rows if r.harmful
        }
        return every.pop() if len(every) == 1 else None

    def behind(self, model: str, finding: str, metric: str) -> dict[str, str]:
        """What to ask for to see the rows of a finding's rate; empty where it is of no rows."""
        return dict(self._known.get((model, finding.partition(" (")[0], metric), {}))

    @cached_property
    def _known(self) -> Mapping[tuple[str, str, str], Query]:
        """What each rate of the evaluations' findings is called, and the rows behind it."""
        known: dict[tuple[str, str, str], Query] = {}
        for model, rows in self.judged.items():
            for judge, measure, benchmark, attack in dict.fromkeys(
                (r.judge, r.measure, r.benchmark, r.attack) for r in rows
            ):
                query = {"model": model, "judge": judge, "measure": measure}
                query |= {"benchmark": benchmark, "attack": attack}
                name = metric_name(measure, benchmark, attack)
                known[model, Key.judged(judge), name] = query
                if benchmark == "sandbox":
                    known[model, Key.SAFETY, f"attack success, {attack}"] = query
            for judge in dict.fromkeys(row.judge for row in rows):
                one = {"model": model, "judge": judge}
                finding = Key.judged(judge)
                for flag, name in zip(FLAGS, FLAG_RATES, strict=True):
                    known[model, finding, name] = {**one, "flag": flag}
                for label in dict.fromkeys(row.label for row in rows if row.label):
                    known[model, finding, f"answers: {label}"] = {**one, "label": label}
                for name, measure in SANDBOX.items():
                    query = {**one, "measure": measure, "benchmark": "sandbox"}
                    known[model, Key.SAFETY, name] = {**query, "attack": "direct"}
        return known

    def chunks(self) -> list[str]:
        """The texts, packed: for each row its prompt, how it was asked, its answers and reasons."""
        rows = [self._texts(place) for place in self.places]
        return [packed(rows[i : i + CHUNK]) for i in range(0, len(rows), CHUNK)]

    def table(self) -> str:
        """All that is short, packed: where each row is from, and each model's judgements of it."""
        words = _Words()
        rows = []
        for place, first in self.places.items():
            where = (first.benchmark, first.attack, str(first.details.get("category", "")))
            named = zip(("benchmark", "attack", "category"), where, strict=True)
            own = [
                [words(kind, word) for kind, word in named],
                int(first.harmful),
                digest(place)[:10],
                [self._judgements(model, place, words) for model in self.judged],
            ]
            rows.append(own)
        return packed({"models": list(map(visible, self.judged)), "chunk": CHUNK, "rows": rows,
                       "words": words.known})  # fmt: skip

    def _judgements(self, model: str, place: Place, words: Callable[[str, str], int]) -> list[Any]:
        """Judge, measure, event (1, 0, or -1 for none), label, verdict, flags and score of each."""
        return [
            [words("judge", r.judge), words("measure", r.measure),
             -1 if r.success is None else int(r.success), words("label", r.label),
             words("verdict", r.verdict),
             sum(getattr(r, flag) << bit for bit, flag in enumerate(FLAGS)), r.score]
            for r in self._by_place[model].get(place, ())
        ]  # fmt: skip

    @cached_property
    def _by_place(self) -> Mapping[str, Mapping[Place, Sequence[Judgement]]]:
        found: dict[str, dict[Place, list[Judgement]]] = {model: {} for model in self.judged}
        for model, rows in self.judged.items():
            for row in rows:
                found[model].setdefault(_place(row), []).append(row)
        return found

    def _texts(self, place: Place) -> list[Any]:
        first = self.places[place]
        asked = str(first.details.get("asked", ""))
        answers: list[Any] = []
        for model in self.judged:
            own = self._by_place[model].get(place, ())
            answers.append([visible(own[0].answer), [visible(r.why) for r in own]] if own else None)
        return [visible(first.prompt), visible(asked), answers]


FLAG_RATES = ("truncated answers", "empty answers", "unparsable verdicts")
"""What the shares of flagged answers are called in findings."""


class _Words:
    """Words by kind, each told once; called, the number of a word."""

    def __init__(self) -> None:
        self.known: dict[str, list[str]] = {}
        self._places: dict[tuple[str, str], int] = {}

    def __call__(self, kind: str, word: str) -> int:
        own = self.known.setdefault(kind, [])
        if (kind, word) not in self._places:
            self._places[kind, word] = len(own)
            own.append(visible(word))
        return self._places[kind, word]


def _place(row: Judgement) -> Place:
    return (row.benchmark, row.id, row.attack)


def packed(value: Any) -> str:
    """JSON as the page unpacks it: gzip, then base64; the same bytes for the same value."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return base64.b64encode(
        gzip.compress(text.encode("utf-8", "surrogatepass"), 6, mtime=0)
    ).decode()


def unpacked(text: str) -> Any:
    """What :func:`packed` packed."""
    return json.loads(gzip.decompress(base64.b64decode(text)))


def files(chunks: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Chunks as the scripts of a folder: each hands its text to the page."""
    for index, chunk in enumerate(chunks):
        yield f"{index}.js", f'truelineRows({index}, "{chunk}");\n'
