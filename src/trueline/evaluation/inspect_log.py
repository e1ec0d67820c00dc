"""Our log as an Inspect ``.eval`` file, to be read in Inspect's viewer (extra ``inspect``).

One sample is one answer: a prompt under one attack. Every judge's verdict on it is a score named
``measure/judge``, 1 where the measure's event happened and 0 where it did not; an answer that a
judge did not tell of has no such score, and is counted as unscored.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trueline.errors import UserError
from trueline.evaluation.comparison.runs import JudgedRun
from trueline.evaluation.harness.log import Judgement
from trueline.stats import clustered_rate


def export_inspect(run: JudgedRun, path: str | os.PathLike[str]) -> Path:
    """Write a judged run as an Inspect log.

    Args:
        run: what :func:`~trueline.evaluation.comparison.load_judged_run` read.
        path: the file to write, ending in ``.eval`` or ``.json``.

    Returns:
        The file written.

    Raises:
        UserError: the extra is not installed, or the file's name ends otherwise.
    """
    target = Path(path)
    if target.suffix not in (".eval", ".json"):
        raise UserError(f"an Inspect log ends in .eval or .json, got {target.name}")
    try:
        from inspect_ai import log
    except ImportError:
        raise UserError(
            "writing Inspect logs needs inspect-ai: pip install trueline[inspect]"
        ) from None
    answers: dict[tuple[str, str, str], list[Judgement]] = {}
    for row in run.judgements:
        answers.setdefault((row.benchmark, row.id, row.attack), []).append(row)
    samples = [_sample(rows, run.name) for rows in answers.values()]
    benchmarks = list(dict.fromkeys(row.benchmark for row in run.judgements))
    target.parent.mkdir(parents=True, exist_ok=True)
    log.write_eval_log(
        log.EvalLog(
            status="success",
            eval=log.EvalSpec(
                created=datetime.now(UTC).isoformat(timespec="seconds"),
                task="trueline/" + "+".join(benchmarks),
                model=run.name,
                dataset=log.EvalDataset(
                    name="+".join(benchmarks),
                    samples=len(samples),
                    sample_ids=[sample.id for sample in samples],
                ),
                config=log.EvalConfig(),
                metadata={"trueline": dict(run.settings)},
            ),
            results=log.EvalResults(
                total_samples=len(samples),
                completed_samples=len(samples),
                scores=_scores(run.judgements),
            ),
            samples=samples,
        ),
        str(target),
    )
    return target


def _sample(rows: Sequence[Judgement], model: str) -> Any:
    from inspect_ai.log import EvalSample
    from inspect_ai.model import ChatMessageAssistant, ChatMessageUser, ModelOutput
    from inspect_ai.scorer import Score

    first = rows[0]
    output = ModelOutput.from_content(
        model, first.answer, stop_reason="max_tokens" if first.truncated else "stop"
    )
    facts = {name: getattr(first, name) for name in ("benchmark", "attack", "harmful", "group")}
    return EvalSample(
        id=f"{first.benchmark}/{first.id}/{first.attack}",
        epoch=1,
        input=first.prompt,
        target="",
        messages=[
            ChatMessageUser(content=first.prompt),
            ChatMessageAssistant(content=first.answer, model=model),
        ],
        output=output,
        scores={
            _name(row): Score(
                value=_value(row), answer=row.verdict, metadata={"unparsable": row.unparsable}
            )
            for row in rows
            if _value(row) is not None
        },
        metadata={**facts, "details": dict(first.details)},
    )


def _name(row: Judgement) -> str:
    return f"{row.measure}/{row.judge}"


def _value(row: Judgement) -> Any:
    return row.score if row.success is None else int(row.success)


def _scores(rows: Sequence[Judgement]) -> list[Any]:
    """Each judge's rate with its interval, or the mean where it gives scores."""
    from inspect_ai.log import EvalMetric, EvalScore

    found = []
    for name in dict.fromkeys(map(_name, rows)):
        own = [row for row in rows if _name(row) == name]
        known = [row for row in own if _value(row) is not None]
        metrics: dict[str, float] = {}
        if known and all(row.success is not None for row in known):
            rate = clustered_rate(
                name, [row.success for row in known], [row.cluster for row in known]
            )
            ends = {"rate": rate.value, "low": rate.low, "high": rate.high}
            metrics = {key: value for key, value in ends.items() if value is not None}
        elif known:
            metrics = {"mean": sum(float(_value(row)) for row in known) / len(known)}
        found.append(
            EvalScore(
                name=name,
                scorer=own[0].judge,
                scored_samples=len(known),
                unscored_samples=len(own) - len(known),
                metrics={key: EvalMetric(name=key, value=v) for key, v in metrics.items()},
            )
        )
    return found
