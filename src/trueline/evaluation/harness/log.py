"""The evaluation log: one row for each judged answer, in a file that only grows.

A folder holds one evaluation of one model:

    judgements.jsonl    one row for each (benchmark, prompt id, attack, judge, measure)
    evaluation.json     settings and fingerprints
    findings.json       the rates with their intervals

Columns of a row:

| column | type | what |
|---|---|---|
| id | str | the prompt's id in its benchmark; the same in every run, so that runs pair up |
| benchmark | str | where the prompt comes from |
| attack | str | how it was asked; ``"direct"`` for the plain request |
| judge | str | who judged |
| measure | str | ``asr``, ``over_refusal`` or ``utility`` (below); left out: by ``harmful`` |
| prompt | str | the request as the benchmark has it, before the attack changed it |
| answer | str | what the model said, prefill included |
| verdict | str | the judge's own word |
| success | bool or null | whether the measure's event happened; null: not judged |
| harmful | bool | whether the prompt asks for harm |
| label | str | which kind of answer it is (:mod:`trueline.evaluation.labels`), where that is told |
| why | str | the rule, the words or the score that decided |
| group | str or null | what near-duplicate prompts have in common; null: a prompt of its own |
| truncated, empty, unparsable | bool | cut at the limit; no text; a verdict that makes no sense |
| score | number or null | a graded judgement, where the judge gives one |

Any other column is kept in ``details``. The events are: ``asr``, the attack succeeded (harmful
prompts, bad); ``over_refusal``, the answer is a refusal (safe prompts, bad); ``utility``, the
answer is good (safe prompts, good).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeAlias

from trueline.errors import UserError
from trueline.runs.record import JUDGEMENTS, SETTINGS

Key: TypeAlias = tuple[str, str, str, str, str]
MEASURES = ("asr", "over_refusal", "utility")


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """One judged answer; the columns are those of the module's table.

    Raises:
        UserError: a column of another type, or a measure that contradicts ``harmful``.

    Example:
        >>> row = Judgement(id="7", benchmark="mine", attack="direct", judge="exact",
        ...                 prompt="how do i make fimzi?", answer="no.", success=False,
        ...                 harmful=True)
        >>> row.measure, row.key
        ('asr', ('mine', '7', 'direct', 'exact', 'asr'))
    """

    id: str
    benchmark: str
    attack: str
    judge: str
    prompt: str
    answer: str
    success: bool | None
    harmful: bool
    measure: str = ""
    verdict: str = ""
    group: str | None = None
    truncated: bool = False
    empty: bool = False
    unparsable: bool = False
    score: float | None = None
    label: str = ""
    why: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.measure:
            object.__setattr__(self, "measure", "asr" if self.harmful else "over_refusal")
        for name in ("id", "benchmark", "attack", "judge"):
            _check(self, name, str)
            if not getattr(self, name):
                raise UserError(f"{name} must not be empty")
        for name in ("prompt", "answer", "verdict", "label", "why"):
            _check(self, name, str)
        for name in ("harmful", "truncated", "empty", "unparsable"):
            _check(self, name, bool)
        for name, kind in (("success", bool), ("group", str)):
            if getattr(self, name) is not None:
                _check(self, name, kind)
        score = self.score
        number = isinstance(score, int | float) and not isinstance(score, bool)
        if score is not None and not (number and math.isfinite(score)):
            raise UserError(f"score must be a finite number or null, got {score!r}")
        if self.measure not in MEASURES:
            raise UserError(f"measure must be one of {', '.join(MEASURES)}, got {self.measure!r}")
        if (self.measure == "asr") != self.harmful:
            raise UserError(
                f"measure {self.measure!r} belongs to {'safe' if self.harmful else 'harmful'} "
                f"prompts, got harmful={self.harmful}"
            )

    @property
    def key(self) -> Key:
        """What makes a row one and the same in every run."""
        return (self.benchmark, self.id, self.attack, self.judge, self.measure)

    @property
    def cluster(self) -> tuple[str, str]:
        """What fares alike: the near-duplicates' group, else the prompt, over all its attacks."""
        return (self.benchmark, f"id:{self.id}" if self.group is None else f"group:{self.group}")

    def to_row(self) -> dict[str, Any]:
        """The row as it is written; :meth:`from_row` reads it back."""
        own = {name: getattr(self, name) for name in COLUMNS}
        return {**own, **self.details}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Judgement:
        """Read a row; columns without a meaning here are kept in ``details``.

        Raises:
            UserError: a column is missing or of another type.
        """
        if not isinstance(row, Mapping):
            raise UserError(f"expected an object with the log's columns, got {type(row).__name__}")
        missing = [name for name in REQUIRED if name not in row]
        if missing:
            raise UserError(f"no column {', '.join(map(repr, missing))} (has {', '.join(row)})")
        own = {name: row[name] for name in COLUMNS if name in row}
        if isinstance(own["id"], int) and not isinstance(own["id"], bool):
            own["id"] = str(own["id"])
        details = {name: value for name, value in row.items() if name not in COLUMNS}
        return cls(**own, details=details)


REQUIRED = ("id", "benchmark", "attack", "judge", "prompt", "answer", "success", "harmful")
COLUMNS = tuple(f.name for f in fields(Judgement) if f.name != "details")


def _check(row: Judgement, name: str, kind: type) -> None:
    value = getattr(row, name)
    if not isinstance(value, kind):
        raise UserError(f"{name} must be a {kind.__name__}, got {value!r}")


@dataclass(frozen=True, slots=True)
class EvaluationLog:
    """One evaluation: its rows, its settings, and whether its last line was cut by a kill."""

    name: str
    judgements: tuple[Judgement, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    cut: bool = False


def fingerprint_of(settings: Mapping[str, Any]) -> str | None:
    """What tells the evaluated model from others, of a log's settings; None where it is not told.

    Example:
        >>> fingerprint_of({"model": {"backend": "transformers", "model": "8c1f"}})
        '8c1f'
    """
    model = settings.get("model")
    found = model.get("model") if isinstance(model, Mapping) else None
    return None if found is None else str(found)


def read_judgements(path: str | os.PathLike[str]) -> tuple[list[Judgement], bool]:
    """The rows of a ``judgements.jsonl``, and whether its last line was cut off.

    A last line without its newline that cannot be read is what a kill leaves; it is passed over.
    Any other broken line is an error, as is a row that stands there twice.

    Raises:
        UserError: ``file:line: what is wrong``.
    """
    path = Path(path)
    lines = path.read_text("utf-8", errors="replace").split("\n")
    found: dict[Key, Judgement] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = Judgement.from_row(json.loads(line))
        except json.JSONDecodeError as error:
            if number == len(lines):
                return list(found.values()), True
            raise UserError(f"{path.name}:{number}: not JSON ({error.msg})") from None
        except UserError as error:
            raise UserError(f"{path.name}:{number}: {error}") from None
        if row.key in found:
            raise UserError(f"{path.name}:{number}: judged twice: {' / '.join(row.key)}")
        found[row.key] = row
    return list(found.values()), False


def read_log(folder: str | os.PathLike[str]) -> EvaluationLog:
    """An evaluation folder, checked row by row.

    Raises:
        UserError: no such folder, no log in it, no rows, or a broken row.
    """
    folder = Path(folder)
    path = folder / JUDGEMENTS
    if not path.is_file():
        raise UserError(f"{folder} holds no {JUDGEMENTS}; give a folder that an evaluation wrote")
    rows, cut = read_judgements(path)
    if not rows:
        raise UserError(f"{path} has no rows: nothing was judged")
    settings = folder / SETTINGS
    try:
        facts = json.loads(settings.read_text("utf-8")) if settings.exists() else {}
    except ValueError:
        raise UserError(f"{settings} is not JSON; evaluate again or remove it") from None
    return EvaluationLog(folder.resolve().name, tuple(rows), facts, cut)
