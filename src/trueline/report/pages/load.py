"""A run's samples as the page shows them, and what curation left beside its data.

A line of the samples is ``{"prompt": ..., "answers": {model: text}}``, optionally with
``"sensitive"`` and ``"label"``; an answer may also be
``{"text": ..., "verdict": ..., "bad": ...}``. The sandbox's own rows, with one
``"answer"`` and its ``"verdict"``, are read as well.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trueline.report.blocks import Answer, Sample
from trueline.runs.record import Run


def load_run(run_dir: str | os.PathLike[str]) -> Run:
    """A run directory, read whole; a piece that is absent or broken is noted and left out.

    Raises:
        UserError: there is no such directory.
    """
    return Run.open(run_dir).read()


def samples_of(run: Run) -> list[Sample]:
    """The run's samples as the page shows them."""
    own = run.path.resolve().name
    return [read_sample(row, own) for row in run.samples]


def curation_of(run: Run) -> Mapping[str, Any]:
    """The manifest that a curation verb left beside the training data, if it still lies there."""
    name = run.config.get("dataset_name")
    if not isinstance(name, str):
        return {}
    path = Path(name)
    stem = path.name.removesuffix(".gz").rsplit(".", 1)[0]
    beside = path.with_name(f"{stem}.manifest.json") if path.name else path
    return run.mapping(beside) if beside.is_file() else {}


def read_sample(row: Mapping[str, Any], run: str) -> Sample:
    """A line of samples.jsonl; an answer of no named model is the run's."""
    given = row.get("answers")
    if not isinstance(given, Mapping):
        given = {run: {"text": row.get("answer", ""), "verdict": row.get("verdict", "")}}
    harmful = row.get("safety") in (0, "harmful")
    return Sample(
        _plain(row["prompt"]),
        [_answer(str(model), value) for model, value in given.items()],
        bool(row.get("sensitive", harmful)),
        str(row.get("label", row.get("kind", ""))),
    )


def _answer(model: str, value: Any) -> Answer:
    if not isinstance(value, Mapping):
        return Answer(model, _plain(value))
    bad = value.get("bad")
    return Answer(
        model,
        _plain(value.get("text", "")),
        str(value.get("verdict", "")),
        bad if isinstance(bad, bool) else None,
    )


def _plain(value: Any) -> str:
    """Text as it is; a conversation as its turns."""
    if isinstance(value, list) and all(isinstance(turn, Mapping) for turn in value):
        if len(value) == 1:
            return str(value[0].get("content", ""))
        return "\n\n".join(f"{turn.get('role')}: {turn.get('content')}" for turn in value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
