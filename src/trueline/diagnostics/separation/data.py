"""Prompts with safety labels, as separation needs them, from any data that has both."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from os import PathLike
from typing import Any

from trueline.data import fields, load_examples
from trueline.data.readers import DataError
from trueline.data.sources import Source, open_source
from trueline.records import Example, Message, RecordError, Safety, Text


@dataclass(frozen=True, slots=True)
class LabeledPrompts:
    """Distinct prompts and whether each is harmful.

    Args:
        prompts: plain text or messages.
        harmful: one label a prompt.
        repeated: prompts that came up before and were left out, since one in the fitted and the
            measured part would be measured on itself.
        unlabeled: prompts left out for want of a label.
    """

    prompts: list[Text]
    harmful: list[bool]
    repeated: int = 0
    unlabeled: int = 0


def read_prompts(
    source: Source,
    *,
    split: str = "train",
    name: str | None = None,
    form: str | None = None,
    skip_bad: bool = False,
    limit: int | None = None,
    as_chat: bool = False,
) -> LabeledPrompts:
    """Prompts and labels from any form of data with a column ``safety``, or from the two columns
    ``prompt`` and ``safety`` alone.

    Args:
        source, split, name, form, skip_bad: as in :func:`trueline.load_examples`; ``skip_bad``
            also leaves out prompts without a label, and counts them.
        limit: the first so many rows.
        as_chat: make a user's turn of plain text, so that the chat template applies.

    Raises:
        DataError: a prompt without label, one labeled both ways, or a row that cannot be read.
    """
    first = next(iter(open_source(source, split=split, name=name)()), None)
    bare = (
        form is None
        and first is not None
        and isinstance(first.value, Mapping)
        and {"prompt", "safety"} <= set(first.value)
    )
    rows: Iterable[tuple[str, Text, Safety | None]]
    if bare:
        rows = islice(_bare(source, split, name, skip_bad), limit)
    else:
        examples = load_examples(
            source, split=split, name=name, form=form, skip_bad=skip_bad, limit=limit
        )
        rows = _of_examples(examples)
    found = _collect(rows, skip_bad=skip_bad, as_chat=as_chat)
    if not found.prompts:
        raise DataError(
            source if isinstance(source, str | PathLike) else "source",
            f"none of {found.unlabeled} prompts has a safety label; separation needs a column "
            "'safety', 'harmful' (0) or 'safe' (1)",
        )
    return found


def prompts_of(examples: Iterable[Example]) -> LabeledPrompts:
    """The labeled prompts among examples; the others are counted as unlabeled.

    Raises:
        DataError: a prompt that is labeled both ways.
    """
    return _collect(_of_examples(examples), skip_bad=True, as_chat=False)


def _of_examples(examples: Iterable[Example]) -> Iterator[tuple[str, Text, Safety | None]]:
    for example in examples:
        yield example.id or "example", example.prompt, example.safety


def _bare(
    source: Source, split: str, name: str | None, skip_bad: bool
) -> Iterator[tuple[str, Text, Safety | None]]:
    for row in open_source(source, split=split, name=name)():
        try:
            yield row.place, *_prompt(row.value)
        except RecordError as error:
            if not skip_bad:
                raise DataError(row.place, error) from None


def _prompt(value: Any) -> tuple[Text, Safety | None]:
    if isinstance(value, RecordError):
        raise value
    if not isinstance(value, Mapping) or value.get("prompt") is None:
        raise RecordError("column 'prompt' is missing")
    return fields.text(value, "prompt"), fields.safety(value.get("safety"))


def _collect(
    rows: Iterable[tuple[str, Text, Safety | None]], *, skip_bad: bool, as_chat: bool
) -> LabeledPrompts:
    labels: dict[Text, bool] = {}
    repeated = unlabeled = 0
    for place, prompt, safety in rows:
        if safety is None:
            if not skip_bad:
                raise DataError(
                    place,
                    "no safety label; separation needs a column 'safety', 'harmful' (0) or "
                    "'safe' (1), for every prompt",
                )
            unlabeled += 1
            continue
        text = (Message("user", prompt),) if as_chat and isinstance(prompt, str) else prompt
        harmful = safety == "harmful"
        if labels.setdefault(text, harmful) != harmful:
            raise DataError(place, "this prompt is labeled both harmful and safe; mend the labels")
        repeated += 1
    repeated -= len(labels)
    return LabeledPrompts(list(labels), list(labels.values()), repeated, unlabeled)
