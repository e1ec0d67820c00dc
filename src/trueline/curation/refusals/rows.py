"""Planned rows become data: refusals are dealt into the empty sides, leaks and drops counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from typing import Any, Literal, NamedTuple, TypeAlias

from trueline.curation.jobs.chunks import Chunk, Note, Notes
from trueline.curation.jobs.job import Curated, Job
from trueline.curation.near import KINDS, Leakage, answer_like, flat
from trueline.curation.refusals.bank import MAX_SHARE, Dealer, topic_refusals
from trueline.curation.refusals.writers import ResponseLabeler, Writer
from trueline.curation.safety import Flagged
from trueline.errors import UserError
from trueline.records import Completion, Example, Message, Safety, Text
from trueline.results import Finding, Metric
from trueline.stats.resampling import share


@dataclass(frozen=True)
class Refusals:
    """Where refusals come from.

    Args:
        kind: ``"bank"``; ``"topics"``, templates that name the prompt's topic, where it has one;
            ``"model"``, what ``writer`` writes, where that is a refusal. The bank fills in.
        writer: writes a refusal for each prompt; only for ``"model"``.
        texts: a bank of your own.
        max_share: the most rows, as a share, that one text may stand in.
        seed: of the dealing.
    """

    kind: Literal["bank", "topics", "model"] = "bank"
    writer: Writer | None = None
    texts: Sequence[str] | None = None
    max_share: float = MAX_SHARE
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in ("bank", "topics", "model"):
            raise UserError(f"refusals come from bank, topics or model, got {self.kind!r}")
        if (self.kind == "model") != (self.writer is not None):
            raise UserError("refusals by a model need a writer, and a writer needs kind 'model'")

    @property
    def options(self) -> dict[str, Any]:
        """What the refusals depend on, JSON-ready."""
        facts = getattr(self.writer, "facts", None)
        return {
            "kind": self.kind, "writer": dict(facts) if facts else None, "seed": self.seed,
            "max_share": self.max_share, "own texts": list(self.texts) if self.texts else None,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Row:
    """One pair to be: an answer on one side, and the other answer or (None) a refusal; ``begun``
    are words of the answer that end the prompt."""

    chosen: Completion | None
    rejected: Completion | None
    begun: str = ""


Plan: TypeAlias = list[Row] | str
"""An example's rows, or why it has none."""


def check_refusals(job: Job, is_refusal: ResponseLabeler, name: str) -> Notes:
    """For each example, which of its completions refuse."""

    def check(chunk: Chunk) -> list[Note]:
        prompts = [flat(e.prompt) for e in chunk.examples for _ in e.completions]
        responses = [flat(c.content) for e in chunk.examples for c in e.completions]
        told = list(is_refusal(prompts, responses))
        if len(told) != len(responses):
            raise UserError(f"the judge gave {len(told)} verdicts for {len(responses)} responses")
        verdicts = iter(told)
        return [[next(verdicts) for _ in e.completions] for e in chunk.examples]

    return job.map("checking answers", check, key=name, size=64)


def written_refusals(
    job: Job, refusals: Refusals, is_refusal: ResponseLabeler | None, name: str
) -> Notes | None:
    """The model's refusal for each example; None where it wrote none, or wrote an answer."""
    if refusals.writer is None:
        return None
    writer = refusals.writer

    def write(chunk: Chunk) -> list[Note]:
        texts = list(writer([example.prompt for example in chunk.examples]))
        if len(texts) != len(chunk.examples):
            raise UserError(f"the writer gave {len(texts)} texts for {len(chunk.examples)} prompts")
        texts = [text.strip() or None if text else None for text in texts]
        if is_refusal is not None:
            told = is_refusal([flat(e.prompt) for e in chunk.examples], [t or "" for t in texts])
            texts = [text if refuses else None for text, refuses in zip(texts, told, strict=True)]
        return texts

    return job.map("writing refusals", write, key=[refusals.options, name], size=64)


class Planned(NamedTuple):
    """An example with its label's note, its rows (or why it has none), and a written refusal."""

    example: Example
    note: Note
    plan: Plan
    written: str | None = None


def build(
    job: Job,
    plans: Callable[[], Iterator[Planned]],
    refusals: Refusals,
    leakage: Leakage | None,
    *,
    drop_leaks: bool,
) -> Curated | None:
    """Deal the refusals into the planned rows and write them."""
    leaks = None if leakage is None else leakage.notes(job)
    if not job.leader:
        return None

    def planned() -> Iterator[tuple[Planned, str | None]]:
        for one, leak in zip(plans(), leaks or repeat(None), strict=False):
            yield (one._replace(plan=leak) if leak and drop_leaks else one), leak

    total = begun = 0
    begun_text = False
    for one, _ in planned():
        cuts = [] if isinstance(one.plan, str) else [row.begun for row in one.plan]
        total, begun = total + len(cuts), begun + sum(map(bool, cuts))
        begun_text |= any(cuts) and not one.example.conversational
    if job.options.get("begun") and not begun:
        raise UserError(
            "begun has no effect: of no answer that was drawn there are two words, in one message"
        )
    dealer = Dealer(total, seed=refusals.seed, texts=refusals.texts, max_share=refusals.max_share)
    flagged, leaked = Flagged(), Counter[str | None]()

    def finished() -> Iterator[Example]:
        for (example, note, rows, text), leak in planned():
            safety = flagged.add(note)
            leaked[leak] += 1
            if isinstance(rows, str):
                job.drop(example, rows)
                continue
            offers = [text] if text else []
            if refusals.kind == "topics":
                offers = topic_refusals(flat(example.prompt))
            for row in rows:
                yield _complete(example, row, safety, dealer, offers)

    rows = job.write(finished())
    counts = {
        "rows": rows,
        **flagged.counts,
        "different refusals": len(dealer.used),
        "refusals from the bank": dealer.used.total() - dealer.offered.total(),
        "rows with a begun answer": begun,
    }
    for kind, number in sorted(dealer.offered.items()):
        counts[f"refusals from {refusals.kind}, {kind} prompts"] = number
    found = _finding(job, rows, flagged, dealer, leaked if leakage else None, begun_text=begun_text)
    return job.finish(found, counts)


def _complete(
    example: Example, row: Row, safety: Safety | None, dealer: Dealer, offers: Sequence[str]
) -> Example:
    other = row.chosen or row.rejected
    assert other is not None
    refusal = None
    if row.chosen is None or row.rejected is None:
        refusal = answer_like(dealer.deal(str(safety), offers), other.content)
    pair = (row.chosen or refusal, row.rejected or refusal)
    reference = example.reference_prompt
    return Example(
        begin(example.prompt, row.begun),
        tuple(Completion(side.content) for side in pair if side is not None),
        ((0, 1),),
        None if reference is None else begin(reference, row.begun),
        safety,
        example.id,
    )


def begin(prompt: Text, words: str) -> Text:
    """A prompt that ends with these words of the answer.

    Example:
        >>> begin((Message("user", "Sky?"), Message("assistant", "It")), " is")[1].content
        'It is'
    """
    if not words:
        return prompt
    if isinstance(prompt, str):
        return prompt + words
    if prompt[-1].role == "assistant":
        return (*prompt[:-1], replace(prompt[-1], content=prompt[-1].content + words))
    return (*prompt, Message("assistant", words))


def _finding(
    job: Job,
    rows: int,
    flagged: Flagged,
    dealer: Dealer,
    leaked: Counter[str | None] | None,
    *,
    begun_text: bool,
) -> Finding:
    most = Metric("rows with the most frequent refusal", dealer.most / rows, n=rows, unit="rate")
    metrics = [flagged.rate, most]
    advice = []
    harmful, safe = flagged.safety["harmful"], flagged.safety["safe"]
    if not (harmful and safe):
        advice.append("All prompts are of one kind: nothing holds over-refusal (or harm) in check.")
    elif max(harmful, safe) > 2 * min(harmful, safe):
        advice.append(
            f"{harmful} harmful prompts to {safe} safe ones: balance them, or expect a tilt."
        )
    if begun_text:
        advice.append(
            "Answers are begun in plain-text prompts: for a chat model (as_chat) they would be the "
            "user's words; give it messages in place of text, or train on plain text."
        )
    if leaked is not None:
        metrics += [share(kind, leaked[kind], leaked.total()) for kind in KINDS]
        if leaked.total() > leaked[None] and not job.options["drop_leaks"]:
            advice.append("The source shares prompts with the evaluation data; drop them.")
    summary = (
        f"{rows:,} rows with {len(dealer.used)} different refusals, the most frequent in {most} of "
        f"them; {flagged.rate} of labeled prompts are harmful."
    )
    return Finding(job.verb, summary, metrics, " ".join(advice))
