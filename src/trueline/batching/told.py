"""What became of the rows when they were encoded: counts, sentences, a finding."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from trueline.batching.trees import TokenTree
from trueline.prompts import Renderer
from trueline.records import Example, Text
from trueline.results import Finding, Metric

MANY = 0.05
"""Share of rows that lose tokens from which on a run is warned."""


class Told:
    """Counts of what happened to rows.

    ``counts``: ``prompts_truncated`` and ``completions_truncated`` with their tokens
    (``prompt_tokens_cut``, ``completion_tokens_cut``), ``turns_left_out`` of prompts, ``rows_cut``;
    ``boundary_merges`` (the tokenizer would merge prompt and answer; they are encoded apart);
    ``rows_with_control_tokens`` (their text spells some). ``spelled`` names those.

    Args:
        allowed: whether those are read as control tokens.
    """

    def __init__(self, *, allowed: bool = False) -> None:
        self.allowed = allowed
        self.rows = 0
        self.counts: Counter[str] = Counter()
        self.spelled: Counter[str] = Counter()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready data; :meth:`take` reads it."""
        return {"rows": self.rows, "counts": dict(self.counts), "spelled": dict(self.spelled)}

    def take(self, told: Mapping[str, Any]) -> None:
        """Add what was told of other rows."""
        self.rows += int(told["rows"])
        self.counts.update(told["counts"])
        self.spelled.update(told["spelled"])

    def spells(self, renderer: Renderer, example: Example) -> None:
        """Count the control tokens that a row's text spells."""
        texts = [example.prompt, *(completion.content for completion in example.completions)]
        more = [example.reference_prompt, example.template]
        found = renderer.control.spelled([*texts, *(value for value in more if value)])
        if found:
            self.counts["rows_with_control_tokens"] += 1
            self.spelled += found

    def turns(self, before: Text, after: Text) -> None:
        """Count the turns that a prompt lost."""
        if len(before) > len(after):
            self.counts["turns_left_out"] += len(before) - len(after)

    def cut(self, before: TokenTree, after: TokenTree) -> None:
        """Count the tokens that a row lost."""
        prompt = len(before.prompt) - len(after.prompt)
        answers = [
            len(whole.ids) - len(kept.ids)
            for whole, kept in zip(before.branches, after.branches, strict=True)
        ]
        for what, lost in (("prompt", [prompt]), ("completion", answers)):
            if any(tokens > 0 for tokens in lost):
                self.counts[f"{what}s_truncated"] += sum(tokens > 0 for tokens in lost)
                self.counts[f"{what}_tokens_cut"] += sum(tokens for tokens in lost if tokens > 0)
        if prompt > 0 or any(tokens > 0 for tokens in answers):
            self.counts["rows_cut"] += 1

    def sentences(self) -> Iterator[str]:
        """What a user should know, the gravest first, and which option changes it."""
        counts, rows = self.counts, self.rows
        if counts["rows_cut"]:
            cut, share = counts["rows_cut"], counts["rows_cut"] / rows
            option = "max_length" if counts["completions_truncated"] else "max_prompt_length"
            remedy = f"; a larger {option} keeps them" if self.grave else ""
            lost = [
                f"{counts[f'{part}_tokens_cut']:,} tokens of {count:,} {part}s"
                for part in ("completion", "prompt")
                if (count := counts[f"{part}s_truncated"])
            ]
            if counts["turns_left_out"]:
                lost.append(f"{counts['turns_left_out']:,} whole turns among them")
            what = ", ".join(lost)
            yield f"{cut:,} of {rows:,} rows ({share:.1%}) are too long and lose {what}{remedy}"
        if self.spelled:
            names = ", ".join(repr(name) for name, _ in self.spelled.most_common(5))
            yield (
                f"the text of {counts['rows_with_control_tokens']:,} rows spells control tokens "
                f"({sum(self.spelled.values()):,} times: {names}); they are "
                + (
                    "read as control tokens, as allow_control_tokens says"
                    if self.allowed
                    else "read as text, not as control tokens (allow_control_tokens reads them so)"
                )
            )
        if counts["boundary_merges"]:
            yield (
                f"the tokenizer would merge {counts['boundary_merges']:,} answers with the end of "
                "their prompt; they are encoded apart, so that prompts are what generation sees"
            )

    @property
    def grave(self) -> bool:
        """Whether so many rows lost tokens that a run is warned."""
        return self.counts["rows_cut"] > MANY * self.rows

    def finding(self) -> Finding | None:
        """What happened as a finding of a run; None where every row went in as it is."""
        said = list(self.sentences())
        if not said:
            return None
        metrics = [Metric("rows", float(self.rows))]
        metrics += [
            Metric(name.replace("_", " "), float(count), n=self.rows)
            for name, count in sorted(self.counts.items())
        ]
        metrics += [
            Metric(f"spelled: {name}", float(count)) for name, count in self.spelled.most_common(10)
        ]
        return Finding("encoding", ". ".join(_capital(line) for line in said) + ".", metrics)


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]
