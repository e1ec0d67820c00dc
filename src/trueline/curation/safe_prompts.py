"""E-RLHF: the reference model is conditioned on a safe version of every harmful prompt.

    E-DPO = -E ln s(beta ln[pi(w|x) / ref(w|x_s)] - beta ln[pi(l|x) / ref(l|x_s)])
    x_s = prefix + x  where x is harmful,  x_s = x  otherwise

The policy still sees x. So it is a property of the data, a ``reference_prompt``, and works with
every objective that has a reference.

Source: "Mission Impossible: A Statistical Perspective on Jailbreaking LLMs", arXiv 2408.01420.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Literal, TypeAlias

from trueline.curation.jobs.chunks import Chunk, Note
from trueline.curation.jobs.job import Curated, Job, Progress
from trueline.curation.refusals.writers import Writer
from trueline.curation.safety import LABELED, Flagged, Labels
from trueline.data.load import Examples
from trueline.errors import UserError
from trueline.records import Example, Message, Text, is_blank
from trueline.registry import Registry
from trueline.results import Finding
from trueline.stats.resampling import share

Placement: TypeAlias = Literal["last", "first", "every", "system"]

PREFIXES: Registry[str] = Registry("safe prefix")
"""The paper's four prefixes, in rising effect there; "guidelines" gave its main result."""

PREFIXES.add("responsible", "Provide a responsible and ethical answer to the following request. ")
PREFIXES.add(
    "safety",
    "In a manner that promotes safety and well-being, please respond to the following request. ",
)
PREFIXES.add(
    "legality",
    "Keeping in mind the importance of safety and legality, how would you respond to this: ",
)
PREFIXES.add(
    "guidelines",
    "Please ensure your response adheres to community guidelines and ethical standards: ",
)


def prefixed(prompt: Text, prefix: str, placement: Placement = "last") -> Text:
    """The prompt with the prefix before a user's words, or as the system's.

    Args:
        prompt: text, which gets the prefix in front, or messages.
        prefix: put there as it is; end it with a blank.
        placement: the ``"last"`` user turn (the request that is answered), the ``"first"``,
            ``"every"`` one, or a ``"system"`` message (in front of the one there is).

    Raises:
        UserError: ``"system"`` for text, or no user turn to put the prefix before.

    Example:
        >>> prefixed((Message("user", "Hi"), Message("assistant", "Yes?"),
        ...           Message("user", "How?")), "Safely: ")[2].content
        'Safely: How?'
    """
    if isinstance(prompt, str):
        if placement == "system":
            raise UserError("placement 'system' needs conversations; plain text has no roles")
        return prefix + prompt
    if placement == "system":
        if prompt[0].role == "system":
            return (Message("system", prefix + prompt[0].content), *prompt[1:])
        return (Message("system", prefix.rstrip()), *prompt)
    turns = [i for i, message in enumerate(prompt) if message.role == "user"]
    if not turns:
        raise UserError("the prompt has no user turn to put the prefix before")
    chosen = {"last": turns[-1:], "first": turns[:1], "every": turns}[placement]
    return tuple(
        Message(message.role, prefix + message.content) if i in chosen else message
        for i, message in enumerate(prompt)
    )


def rewritten(prompt: Text, text: str) -> Text:
    """The prompt with the last user turn's words replaced."""
    if isinstance(prompt, str):
        return text
    last = max((i for i, message in enumerate(prompt) if message.role == "user"), default=-1)
    if last < 0:
        raise UserError("the prompt has no user turn to rewrite")
    return tuple(Message(m.role, text) if i == last else m for i, m in enumerate(prompt))


def safe_prompts(
    source: Examples,
    output: str | Path,
    *,
    labels: Labels | None = None,
    prefix: str = PREFIXES["guidelines"],
    transform: Callable[[Text], Text] | None = None,
    rewriter: Writer | None = None,
    rewriter_name: str = "",
    placement: Placement = "last",
    which: Literal["harmful", "all"] = "harmful",
    replace_existing: bool = False,
    form: str = "example",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Curated | None:
    """Give harmful prompts a ``reference_prompt``; every row stays.

    Args:
        source: any examples.
        output: the file to write.
        labels: who says which prompts are harmful; the data's own labels unless said.
        prefix: the safe prefix; the paper's four are in ``PREFIXES``.
        transform: makes x_s from x in place of the prefix.
        rewriter: a model that rewrites the last user turn in place of the prefix; where it gives
            nothing, the prefix is used and counted.
        rewriter_name: identifies it (or ``transform``), so that an interrupted run can reuse its
            texts.
        placement: where the prefix goes in a conversation; see :func:`prefixed`.
        which: ``"all"`` gives every prompt one (worse in the paper; for comparison).
        replace_existing: replace reference prompts that are there; else they stay, and are counted.
        form, overwrite, progress: see :class:`Job`.

    Returns:
        What was made, on rank 0; None on other ranks.

    Raises:
        UserError: an option without effect, or no label at all.
    """
    labels = labels or Labels()
    if transform is not None and rewriter is not None:
        raise UserError("give a transform or a rewriter, not both")
    if placement not in ("last", "first", "every", "system"):
        raise UserError(f"placement must be last, first, every or system, got {placement!r}")
    if placement != "last" and (transform is not None or rewriter is not None):
        raise UserError("placement has no effect without a prefix")
    if which not in ("harmful", "all"):
        raise UserError(f"which must be harmful or all, got {which!r}")
    if not prefix.strip():
        raise UserError("the safe prefix is empty; the reference would see the prompt itself")
    facts = dict(getattr(rewriter, "facts", {}))
    options = {
        "labels": labels.options, "prefix": prefix, "by": rewriter_name, "facts": facts,
        "placement": placement, "which": which, "replace_existing": replace_existing, "form": form,
    }  # fmt: skip
    job = Job("safe-prompts", source, Path(output), options, form, overwrite, progress)
    notes = labels.notes(job)
    texts = None
    if rewriter is not None:
        write = rewriter

        def rewrite(chunk: Chunk) -> list[Note]:
            flags = [which == "all" or n["safety"] == "harmful" for n in notes.chunk(chunk.index)]
            return _rewrite(chunk.examples, flags, write)

        key = [labels.options, rewriter_name, facts, which]
        texts = job.map("rewriting", rewrite, key=key, size=LABELED)
    if not job.leader:
        return None
    if which == "harmful" and not any(note["safety"] for note in notes):
        raise UserError("no prompt has a safety label; give labels in the data, or a judge")
    flagged, counts = Flagged(), Counter[str]()

    def rows() -> Iterator[Example]:
        stream = zip(job.examples("writing"), notes, texts or repeat(None), strict=False)
        for example, note, text in stream:
            safety = flagged.add(note)
            example = replace(example, safety=safety)
            if (safety != "harmful" and which == "harmful") or is_blank(example.prompt):
                yield example
                continue
            if example.reference_prompt is not None and not replace_existing:
                counts["had a reference prompt"] += 1
                yield example
                continue
            if transform is not None:
                safe = transform(example.prompt)
            elif text:
                safe = rewritten(example.prompt, text)
            else:
                counts["prefix for want of a rewriting"] += rewriter is not None
                safe = prefixed(example.prompt, prefix, placement)
            counts["given a reference prompt"] += 1
            yield replace(example, reference_prompt=safe)

    written = job.write(rows())
    given = share("given a reference prompt", counts["given a reference prompt"], written)
    unlabeled = flagged.safety["unlabeled"]
    advice = f"{unlabeled} prompts have no label and keep no reference prompt." if unlabeled else ""
    if which == "all":
        advice = "In the paper, prefixing all prompts was worse than prefixing the harmful ones."
    summary = (
        f"{flagged.rate} of labeled prompts are flagged harmful; {given} of {written:,} rows get "
        "a reference prompt."
    )
    finding = Finding("safe-prompts", summary, [flagged.rate, given], advice)
    return job.finish(finding, {"rows": written, **flagged.counts, **counts})


def _rewrite(examples: Sequence[Example], flags: Sequence[bool], writer: Writer) -> list[Note]:
    """The flagged prompts' rewritings, None for the others."""
    asked = [e.prompt for e, flag in zip(examples, flags, strict=True) if flag]
    texts = list(writer(asked)) if asked else []
    if len(texts) != len(asked):
        raise UserError(f"the rewriter gave {len(texts)} texts for {len(asked)} prompts")
    found = iter(texts)
    return [((next(found) or "").strip() or None) if flag else None for flag in flags]
