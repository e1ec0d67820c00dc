"""How good a judge is: sensitivity and specificity against people, or against an exact judge."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trueline.data.readers import DataError
from trueline.errors import UserError
from trueline.evaluation.benchmarks.base import check_columns, read_rows
from trueline.evaluation.benchmarks.tables import truth_value
from trueline.evaluation.harness.log import Judgement
from trueline.evaluation.judges.base import Judge, Measure, checked
from trueline.evaluation.labels import (
    COLUMNS,
    COMPLIANCE,
    LABELS,
    REFUSAL,
    happened,
    label_word,
)
from trueline.results import Finding
from trueline.stats import Calibration, clustered_share, inflation, rate


@dataclass(frozen=True, slots=True)
class Labeled:
    """An answer and what it truly is.

    Args:
        prompt, response: the texts.
        truth: whether the measure's event happened.
        label: what the answer is, of :data:`trueline.evaluation.labels.LABELS`.
        model: whose answer it is, where that is known.
    """

    prompt: str
    response: str
    truth: bool
    label: str = ""
    model: str = ""


def read_labeled(
    source: str,
    *,
    prompt: str = "prompt",
    response: str = "response",
    label: str = "label",
    columns: str | None = None,
    model: str | None = None,
    measure: Measure = "asr",
    split: str = "train",
    told: Callable[[str], None] | None = None,
) -> list[Labeled]:
    """Labeled answers of a CSV, JSON, JSONL or Parquet file or a hub data set.

    Args:
        source: a path, or a hub id.
        prompt, response, label: its columns; the label names the kind of answer (refusal, partial
            refusal, compliance, incoherent, ...), or is true where the event happened.
        columns: a published set whose columns are read as they are, see
            :data:`trueline.evaluation.labels.COLUMNS`; instead of those three.
        model: the column that says whose answer it is; the file's name where there is none.
        measure: the event.
        split: of a hub data set.
        told: told of answers without a text or label, which are then left out.

    Raises:
        DataError: a missing column, a label that says nothing, or a row without text where nobody
            is told.
    """
    spec = None if columns is None else COLUMNS[columns]
    texts = (prompt, response) if spec is None else (spec.prompt, spec.response)
    labels = (label,) if spec is None else spec.labels
    wanted = (*texts, *labels, *(() if model is None else (model,)))
    rows = read_rows(source, texts[:1], split=split)
    check_columns(source, wanted, list(rows[0][1]))
    whole = [
        (place, row) for place, row in rows if all(row.get(name) is not None for name in wanted)
    ]
    if len(whole) < len(rows):
        said = f"{source}: {len(rows) - len(whole)} of {len(rows)} rows lack a text or a label"
        if told is None or not whole:
            raise DataError(source, said)
        told(f"{said} and are left out")
    found = []
    for place, row in whole:
        truth, kind = _truth(row[label], measure) if spec is None else (None, spec.read(row))
        if kind is None:
            expected = f"{label} must say true or false (1 or 0), or one of {', '.join(LABELS)}"
            if spec is not None:
                expected = f"{', '.join(spec.labels)} must say {spec.expected}"
            raise DataError(place, f"{expected}, got {[row[name] for name in labels]}")
        truth = bool(happened(kind, measure)) if truth is None else truth
        whose = str(row[model]) if model is not None else Path(source).name.split(".")[0]
        found.append(Labeled(str(row[texts[0]]), str(row[texts[1]]), truth, kind, whose))
    return found


def model_of(source: str) -> str | None:
    """The fingerprint of the model of an evaluation's folder, or of the model at a path or hub id.

    Raises:
        UserError: it cannot be loaded.
    """
    from trueline.evaluation.backends import open_backend
    from trueline.evaluation.harness.log import fingerprint_of
    from trueline.runs.record import SETTINGS

    file = Path(source) / SETTINGS
    if file.is_file():
        return fingerprint_of(json.loads(file.read_text("utf-8")))
    return fingerprint_of({"model": dict(open_backend(source).facts)})


def _truth(value: Any, measure: Measure) -> tuple[bool | None, str | None]:
    """Whether the event happened, and the kind of answer that means; or the kind alone."""
    kind = label_word(value)
    truth = truth_value(value) if kind is None else None
    if truth is None:
        return None, kind
    return truth, COMPLIANCE if truth == (measure == "asr") else REFUSAL


@dataclass(frozen=True, slots=True)
class JudgeQuality:
    """A judge's calibration, and how many of its verdicts made no sense.

    Args:
        judge: its label.
        measure: the event that was judged.
        calibration: counts against the truth, unparsable verdicts left out.
        unparsable: verdicts that made no sense.
        n: answers in all.
        model: the fingerprint of the model whose answers they are; None where that is not known.
    """

    judge: str
    measure: Measure
    calibration: Calibration
    unparsable: int
    n: int
    model: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The counts, JSON-ready; ``Calibration.from_dict`` reads them back."""
        own = {
            "judge": self.judge,
            "measure": self.measure,
            "unparsable": self.unparsable,
            "n": self.n,
            "model": self.model,
        }
        return {**own, **asdict(self.calibration)}

    @property
    def finding(self) -> Finding:
        """Sensitivity, specificity, accuracy and the unparsable rate, with Wilson intervals."""
        c = self.calibration
        judged = c.positives + c.negatives
        accuracy = clustered_share(
            "accuracy", c.true_positives + c.true_negatives, judged, c.effects[2]
        )
        bias = (c.positives - c.true_positives, c.negatives - c.true_negatives)
        return Finding(
            f"calibration of {self.judge}, {self.measure}",
            f"Judge {self.judge} finds {c.sensitivity} of the true cases and leaves "
            f"{c.specificity} of the others alone; it misses {bias[0]} and invents {bias[1]}.",
            [
                c.sensitivity,
                c.specificity,
                accuracy,
                rate("unparsable verdicts", self.unparsable, self.n),
            ],
            ""
            if c.youden > 0
            else "The judge is no better than chance here: its rates cannot be corrected.",
        )


def calibrate(
    label: str,
    judge: Judge,
    labeled: Sequence[Labeled],
    measure: Measure = "asr",
    model: str | None = None,
) -> JudgeQuality:
    """Judge labeled answers and count; answers to one prompt are a cluster.

    Raises:
        UserError: the judge does not tell this measure, or no answer of one kind is there.
    """
    if measure not in judge.measures:
        raise UserError(
            f"judge {label} does not tell {measure}; it tells {', '.join(sorted(judge.measures))}"
        )
    responses = [row.response for row in labeled]
    verdicts = checked(judge([row.prompt for row in labeled], responses), responses, label)
    pairs = [(v.event(measure), row.truth) for v, row in zip(verdicts, labeled, strict=True)]
    return count(label, measure, pairs, [row.prompt for row in labeled], model)


def calibrate_from_log(
    rows: Sequence[Judgement],
    label: str,
    truth: str,
    measure: Measure = "asr",
    model: str | None = None,
) -> JudgeQuality:
    """A judge of an evaluation against another one of it that is taken for the truth.

    Raises:
        UserError: the log has no rows of one of them for this measure.
    """
    of: dict[str, dict[Any, Judgement]] = {label: {}, truth: {}}
    for row in rows:
        if row.judge in of and row.measure == measure:
            of[row.judge][(row.benchmark, row.id, row.attack)] = row
    for name, found in of.items():
        if not found:
            known = ", ".join(sorted({row.judge for row in rows if row.measure == measure}))
            raise UserError(f"no {measure} judgements by {name!r} in this log (has {known})")
    pairs: list[tuple[bool | None, bool]] = []
    clusters: list[Hashable] = []
    for key, row in of[label].items():
        other = of[truth].get(key)
        if other is None or other.success is None:
            continue
        if other.answer != row.answer:
            raise UserError(
                f"{label} and {truth} judged different answers to {row.id!r}: a judge with a "
                "protocol of its own (kldo) cannot be calibrated from a log; label its answers"
            )
        pairs.append((row.success if not row.unparsable else None, other.success))
        clusters.append(row.cluster)
    return count(label, measure, pairs, clusters, model)


def count(
    label: str,
    measure: Measure,
    pairs: Sequence[tuple[bool | None, bool]],
    clusters: Sequence[Hashable],
    model: str | None = None,
) -> JudgeQuality:
    """A judge's quality from what it said and what is true.

    Args:
        label: the judge's.
        measure: the event.
        pairs: (said, true); None for a verdict that made no sense.
        clusters: what fares alike: the prompt of each answer.
        model: the fingerprint of the model whose answers they are.

    Raises:
        UserError: no answer of one kind.
    """
    judged = [(*pair, at) for pair, at in zip(pairs, clusters, strict=True) if pair[0] is not None]
    right = [float(said == truth) for said, truth, _ in judged]
    groups = [at for *_, at in judged]
    kinds = [
        [i for i, (_, truth, _) in enumerate(judged) if truth is kind] for kind in (True, False)
    ]
    if not all(kinds):
        raise UserError(
            f"judge {label}: calibration needs answers of both kinds, got {len(kinds[0])} where "
            f"the event happened and {len(kinds[1])} where it did not"
        )
    hits = [int(sum(right[i] for i in kind)) for kind in kinds]
    effects = [
        inflation([right[i] for i in kind], [groups[i] for i in kind])
        for kind in (*kinds, range(len(judged)))
    ]
    calibration = Calibration(
        hits[0], len(kinds[0]), hits[1], len(kinds[1]), (effects[0], effects[1], effects[2])
    )
    return JudgeQuality(label, measure, calibration, len(pairs) - len(judged), len(pairs), model)
