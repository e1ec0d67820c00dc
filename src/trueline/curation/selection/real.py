"""REAL: pairs chosen by how alike their responses are, independent of the prompt and of any label.

Dissimilar responses are less ambiguous to tell apart, so their labels err less. Whether that holds
on the data at hand is measured: label error of the selection, of a random sample of its size, and
of one with the same length differences, since dissimilar responses differ in length too.

Source: "REAL: Response Embedding-based Alignment for LLMs", arXiv 2409.17169.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import repeat
from pathlib import Path

from trueline.curation.jobs.chunks import Chunk, Note, Notes, beside
from trueline.curation.jobs.job import Curated, Job, Progress
from trueline.curation.safety import (
    ErrorCount,
    ResponseScorer,
    SecondLabels,
    by_scores,
    given_order,
    judge_pairs,
)
from trueline.curation.selection.candidates import (
    ALL,
    MATCHED,
    RANDOM,
    SELECTED,
    Candidates,
    Size,
    candidate_notes,
    groups_of,
)
from trueline.curation.selection.embed import Cached, Precomputed, Vectors
from trueline.curation.selection.profile import Profile
from trueline.curation.selection.similarity import STRATEGIES
from trueline.data.load import Examples
from trueline.errors import UserError
from trueline.files import checksum
from trueline.processes import rank
from trueline.records import Example

ASKED = 256  # examples whose pairs a judge is asked about together


def select_pairs(
    source: Examples,
    output: str | Path,
    vectors: Vectors,
    *,
    strategy: str = "easy",
    size: Size | None = None,
    seed: int = 0,
    max_cosine: float | None = None,
    keep_repeats: bool = False,
    controls: Sequence[str] = (),
    judge: ResponseScorer | None = None,
    judge_name: str = "",
    second: Examples | None = None,
    form: str = "example",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Curated | None:
    """One pair a prompt, by strategy; then as many prompts as asked for.

    Within a prompt of more than two responses the strategy chooses the pair: ``easy`` the least
    similar, ``hard`` the most similar, ``centroid`` the responses nearest the two centers of
    2-means, ``random`` any. Over prompts ``easy`` takes the lowest cosines, ``hard`` the highest,
    ``random`` and ``centroid`` a seeded sample. A pair is labeled by its scores where it has any,
    else as the data's own pairs say, else by the judge; without any of them it is written without
    a label, ready to be annotated.

    Args:
        source: examples with two responses or more; its pairs or scores are its labels.
        output: the file to write.
        vectors: gives a chunk's vectors: :class:`Cached` around an embedder, or
            :class:`Precomputed`.
        strategy: one of ``STRATEGIES``.
        size: fraction, count or threshold; None for half of the prompts where all have two
            responses (the paper's halves), and for all prompts where some have more.
        seed: of the random samples.
        max_cosine: pairs more alike than this are not chosen (near copies).
        keep_repeats: keep a pair that was there before; else it is dropped and counted.
        controls: ``"random"`` and ``"length-matched"``: samples of the selection's size to write
            beside it.
        judge: scores responses; it labels pairs without a label and gives the second opinion on
            those of selection and controls that have one.
        judge_name: identifies the judge, so that an interrupted run can reuse its scores.
        second: the same pairs labeled by another rater.
        form: the form to write; a selection with unlabeled pairs needs ``"example"``.
        overwrite: replace files that exist.
        progress: told how far each pass is.

    Returns:
        What was made, on rank 0; None on other ranks.

    Raises:
        UserError: an unknown strategy, a size out of range, an option without effect.
    """
    _check(strategy, size, controls, max_cosine)
    options = {
        "strategy": strategy, "size": asdict(size) if size else None, "seed": seed,
        "max_cosine": max_cosine, "keep_repeats": keep_repeats, "controls": list(controls),
        "judge": judge_name, "vectors": _identity(vectors), "form": form,
    }  # fmt: skip
    also = {} if second is None else {"second labels": second}
    job = Job("select", source, Path(output), options, form, overwrite, progress, also)
    paths = {SELECTED: job.output} | {name: beside(job.output, name) for name in controls}
    job.check(*paths.values())
    notes = job.map(
        "similarity",
        lambda chunk: candidate_notes(chunk, vectors, strategy, seed, max_cosine),
        key=[strategy, seed, max_cosine, _identity(vectors)],
        size=1024 if isinstance(vectors, Precomputed) else 128,
    )
    if isinstance(vectors, Precomputed):
        vectors.check_all_used(job.responses)
    if not job.leader and judge is None:
        return None
    counts = {"prompts": job.prompts, "responses": job.responses}
    table = Candidates(
        job.work / f"candidates-{rank()}.npy", notes, job.prompts, repeats=keep_repeats
    )
    if size is None:
        size = Size(fraction=0.5 if job.most_responses == 2 else 1.0)
    if strategy == "centroid" and job.most_responses == 2:
        raise UserError("strategy 'centroid' has no effect on prompts of two responses")
    table.select(strategy, size)
    if strategy != "random":
        table.controls()
    opinions = None if judge is None else _ask(job, table, judge)
    if not job.leader:
        return None
    labels = None if second is None else SecondLabels(second)
    writer = _Writer(job, table, notes, opinions, labels)
    for group, path in paths.items():
        counts[group] = job.write(writer.rows(group, count=group == SELECTED), path)
    errors = []
    groups = [SELECTED] if strategy == "random" else [SELECTED, RANDOM, MATCHED]
    if judge is not None:
        errors += writer.judged.metrics(groups, "label error by the judge")
    if labels is not None:
        errors += writer.rated.metrics([*groups, ALL], "label error by second labels")
    finding = writer.profile.finding(strategy, groups, errors)
    return job.finish(finding, {**counts, "candidates": len(table), **writer.counts})


def _check(
    strategy: str, size: Size | None, controls: Sequence[str], max_cosine: float | None
) -> None:
    STRATEGIES[strategy]
    given = [name for name, value in asdict(size or Size()).items() if value is not None]
    if size is not None and len(given) != 1:
        raise UserError(f"give one of fraction, count and threshold, got {given or 'none'}")
    if size and size.fraction is not None and not 0 < size.fraction <= 1:
        raise UserError(f"fraction must lie in (0, 1], got {size.fraction}")
    if size and size.threshold is not None and strategy not in ("easy", "hard"):
        raise UserError(f"strategy {strategy!r} has no threshold; give a fraction or a count")
    for value in (size.threshold if size else None, max_cosine):
        if value is not None and not -1 <= value <= 1:
            raise UserError(f"a cosine lies between -1 and 1, got {value}")
    for name in controls:
        if name not in (RANDOM, MATCHED):
            raise UserError(f"controls are {RANDOM} and {MATCHED}, got {name!r}")
        if strategy == "random":
            raise UserError("a control of a random selection is the same again; leave it out")


def _identity(vectors: Vectors) -> str:
    if isinstance(vectors, Cached):
        return vectors.embedder.identity
    if isinstance(vectors, Precomputed):
        return f"vectors {checksum(vectors.path)}"
    return getattr(vectors, "identity", repr(vectors))


def _ask(job: Job, table: Candidates, judge: ResponseScorer) -> Notes:
    """The judge's scores of the pairs of selection and controls."""

    def score(chunk: Chunk) -> list[Note]:
        rows = table.table[chunk.index * ASKED :][: len(chunk.examples)]
        pairs = [(int(row["first"]), int(row["second"])) if row["groups"] else None for row in rows]
        return judge_pairs(chunk.examples, pairs, judge)

    return job.map("judging", score, key=dict(job.options), size=ASKED)


@dataclass
class _Writer:
    """Writes selection and controls, and counts what they are made of."""

    job: Job
    table: Candidates
    notes: Notes
    opinions: Notes | None
    second: SecondLabels | None
    judged: ErrorCount = field(default_factory=ErrorCount)
    rated: ErrorCount = field(default_factory=ErrorCount)
    counts: Counter[str] = field(default_factory=Counter)
    profile: Profile = field(default_factory=Profile)

    def rows(self, group: str, *, count: bool) -> Iterator[Example]:
        """The group's examples, each with its one pair."""
        stream = zip(
            self.job.examples(f"writing {group}"),
            self.notes,
            (row for block in self.table.blocks() for row in block),
            self.opinions or repeat(None),
            strict=False,
        )
        for example, note, row, scores in stream:
            if not row["usable"]:
                if count:
                    self.job.drop(example, note.get("drop", "the pair stands in the data before"))
                continue
            pair = (int(row["first"]), int(row["second"]))
            groups = groups_of(row)
            given = given_order(example, pair)
            if count:
                self.profile.add(example, pair, float(row["cosine"]), groups)
                self._audit(example, pair, given, scores, groups)
                if SELECTED not in groups:
                    self.job.drop(example, "not selected")
            if group in groups:
                order = given or (by_scores(pair, scores) if scores else None)
                if count:
                    self.counts["labeled by the judge"] += given is None and order is not None
                    self.counts["without a label"] += order is None
                yield _keep(example, pair, order)

    def _audit(
        self,
        example: Example,
        pair: tuple[int, int],
        given: tuple[int, int] | None,
        scores: list[float | None] | None,
        groups: list[str],
    ) -> None:
        if given is None:
            return
        if scores is not None:
            told = by_scores(pair, scores)
            self.judged.add(groups, None if told is None else told == given)
        if self.second is not None:
            self.rated.add([*groups, ALL], self.second.prefers(example, given))


def _keep(example: Example, pair: tuple[int, int], order: tuple[int, int] | None) -> Example:
    """The example with the two responses alone, in the data's order, and their label."""
    kept = tuple(example.completions[i] for i in pair)
    pairs = () if order is None else ((pair.index(order[0]), pair.index(order[1])),)
    return replace(example, completions=kept, pairs=pairs)
