"""How good a judge is: sensitivity and specificity against people, or against an exact judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from trueline.data.readers import DataError
from trueline.errors import UserError
from trueline.evaluation.benchmarks.base import read_rows
from trueline.evaluation.benchmarks.tables import truth_value
from trueline.evaluation.judges.base import Judge, Measure, checked
from trueline.evaluation.log import Judgement
from trueline.results import Finding
from trueline.stats import Calibration, rate


@dataclass(frozen=True, slots=True)
class Labeled:
    """An answer and whether the measure's event truly happened."""

    prompt: str
    response: str
    truth: bool


def read_labeled(
    source: str,
    *,
    prompt: str = "prompt",
    response: str = "response",
    label: str = "label",
    split: str = "train",
) -> list[Labeled]:
    """Labeled answers of a CSV, JSON, JSONL or Parquet file or a hub data set.

    Args:
        source: a path, or a hub id.
        prompt, response, label: its columns; the label is true where the event happened (the
            attack succeeded, or the safe prompt was refused).
        split: of a hub data set.

    Raises:
        DataError: a missing column, or a label that is no truth value.
    """
    rows = read_rows(source, (prompt, response, label), split=split)
    found = []
    for place, row in rows:
        truth = truth_value(row[label])
        if truth is None:
            raise DataError(place, f"{label} must say true or false (1 or 0), got {row[label]!r}")
        found.append(Labeled(str(row[prompt]), str(row[response]), truth))
    return found


@dataclass(frozen=True, slots=True)
class JudgeQuality:
    """A judge's calibration, and how many of its verdicts made no sense.

    Args:
        judge: its label.
        measure: the event that was judged.
        calibration: counts against the truth, unparsable verdicts left out.
        unparsable: verdicts that made no sense.
        n: answers in all.
    """

    judge: str
    measure: Measure
    calibration: Calibration
    unparsable: int
    n: int

    def to_dict(self) -> dict[str, Any]:
        """The counts, JSON-ready; ``Calibration.from_dict`` reads them back."""
        own = {
            "judge": self.judge,
            "measure": self.measure,
            "unparsable": self.unparsable,
            "n": self.n,
        }
        return {**own, **asdict(self.calibration)}

    @property
    def finding(self) -> Finding:
        """Sensitivity, specificity, accuracy and the unparsable rate, with Wilson intervals."""
        c = self.calibration
        judged = c.positives + c.negatives
        accuracy = rate("accuracy", c.true_positives + c.true_negatives, judged)
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
    label: str, judge: Judge, labeled: Sequence[Labeled], measure: Measure = "asr"
) -> JudgeQuality:
    """Judge labeled answers and count.

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
    return _count(label, measure, pairs)


def calibrate_from_log(
    rows: Sequence[Judgement], label: str, truth: str, measure: Measure = "asr"
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
    return _count(label, measure, pairs)


def _count(label: str, measure: Measure, pairs: Sequence[tuple[bool | None, bool]]) -> JudgeQuality:
    judged = [(said, truth) for said, truth in pairs if said is not None]
    positives = [said for said, truth in judged if truth]
    negatives = [said for said, truth in judged if not truth]
    if not positives or not negatives:
        raise UserError(
            f"judge {label}: calibration needs answers of both kinds, got {len(positives)} where "
            f"the event happened and {len(negatives)} where it did not"
        )
    calibration = Calibration(
        sum(positives), len(positives), len(negatives) - sum(negatives), len(negatives)
    )
    return JudgeQuality(label, measure, calibration, len(pairs) - len(judged), len(pairs))
