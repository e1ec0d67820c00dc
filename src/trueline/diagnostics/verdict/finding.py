"""The verdict: why an alignment works or fails, in sentences that each stand on a number.

A pure function of findings and of the training's log. Where an interval leaves the question open,
or nothing was measured, the sentence says so; no answer rests on a bare estimate.
"""

from __future__ import annotations

from collections.abc import Sequence

from trueline.diagnostics.verdict.questions import (
    Answer,
    Log,
    Sentence,
    answering,
    chosen_falls,
    entangled,
    length_decides,
    out_of_reach,
    preferred,
    separated,
)
from trueline.results import Finding
from trueline.runs.record import Key

READ = (
    Key.ANSWERS,
    Key.RANKING,
    Key.ENTANGLEMENT,
    Key.SEPARATION,
    Key.SEPARATION_CHANGE,
)
"""The findings that the verdict rests on, by name."""

__all__ = ["Answer", "Sentence", "verdict", "verdict_finding"]


def verdict(findings: Sequence[Finding], log: Log = (), *, held_out: bool = True) -> list[Sentence]:
    """What the findings of a run say about it.

    Args:
        findings: those named in :data:`READ`, as far as there are any; others are passed over.
        log: the training's log, for what was not measured otherwise.
        held_out: whether the pairs were kept out of training.

    Returns:
        One sentence a question, the same questions every time.
    """
    known = {finding.name: finding for finding in findings if finding.name in READ}
    found = {metric.name: metric for finding in known.values() for metric in finding.metrics}
    reach = known[Key.RANKING].figures.get("reach", {}) if Key.RANKING in known else {}
    falling = chosen_falls(found, log)
    sentences = [
        answering(found),
        falling,
        entangled(found, falling, log),
        preferred(found),
        out_of_reach(found, reach),
        separated(found),
        length_decides(found),
    ]
    if not held_out and any(sentence.evidence for sentence in sentences):
        sentences.append(
            Sentence(
                "Are these numbers of unseen data?",
                "no",
                "The pairs are the training's own, since none were held out: expect less on new "
                "ones. Set test_size or eval_dataset_name, or give --data.",
            )
        )
    return sentences


def verdict_finding(sentences: Sequence[Sentence]) -> Finding:
    """The verdict as a finding, to be kept with the others and shown in the report."""
    evidence = {metric.name: metric for sentence in sentences for metric in sentence.evidence}
    advice = dict.fromkeys(sentence.advice for sentence in sentences if sentence.advice)
    return Finding(
        Key.VERDICT,
        " ".join(sentence.text for sentence in sentences),
        tuple(evidence.values()),
        " ".join(advice),
        {"sentences": [sentence.to_dict() for sentence in sentences]},
    )
