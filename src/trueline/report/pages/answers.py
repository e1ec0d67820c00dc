"""Samples of several runs, merged: one prompt, every model's answer beside the others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from trueline.report.blocks import Answer, Sample, Samples, Section
from trueline.report.pages.load import samples_of
from trueline.runs.record import SAMPLES, Run

SHOWN = 24
"""Prompts on the page; the run's file has all of them."""


def sample_section(runs: Sequence[Run]) -> Iterator[Section]:
    """Some prompts of every kind with all models' answers."""
    merged = list(_merged(runs))
    if not merged:
        return
    chosen = spread(merged, SHOWN)
    some = f"{len(chosen)} of {len(merged)} prompts, of every kind; {SAMPLES} has all. "
    text = (some if len(chosen) < len(merged) else "") + (
        "Answers to harmful prompts stay blurred until asked for."
        if any(sample.sensitive for sample in chosen)
        else ""
    )
    yield Section("Samples", text, [Samples(chosen)])


def _merged(runs: Sequence[Run]) -> Iterator[Sample]:
    """Samples that ask the same in the same way are one; a model named twice takes its run's."""
    found: dict[tuple[str, str], list[Answer]] = {}
    sensitive: set[tuple[str, str]] = set()
    for run in runs:
        for sample in samples_of(run):
            key = (sample.prompt, sample.label)
            answers = found.setdefault(key, [])
            taken = {answer.model for answer in answers}
            answers += [
                replace(a, model=f"{run.name}, {a.model}") if a.model in taken else a
                for a in sample.answers
            ]
            if sample.sensitive:
                sensitive.add(key)
    for key, answers in found.items():
        yield Sample(key[0], answers, key in sensitive, key[1])


def spread(samples: Sequence[Sample], count: int) -> list[Sample]:
    """At most so many, taken in turn from every label and kind of prompt, in the given order."""
    kinds: dict[tuple[str, bool], list[int]] = {}
    for index, sample in enumerate(samples):
        kinds.setdefault((sample.label, sample.sensitive), []).append(index)
    turns = [(turn, index) for places in kinds.values() for turn, index in enumerate(places)]
    kept = sorted(index for _, index in sorted(turns)[:count])
    return [samples[index] for index in kept]
