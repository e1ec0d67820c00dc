"""`trueline data`: look at data and turn it from one form into another."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from trueline.cli.common import Json, console, out, print_json
from trueline.cli.curate import Form, Limit, Name, SkipBad, Source, Split, steps
from trueline.cli.lazy import Late
from trueline.terminal import polled

if TYPE_CHECKING:
    from trueline.batching import Encoder
    from trueline.data import DataSummary, Examples
    from trueline.records import Example

app = typer.Typer(cls=Late(steps), no_args_is_help=True, help="Inspect, convert and curate data.")


STYLES = {"prompt": "dim", "chosen": "green", "desirable": "green", "rejected": "red"}
SHOWN = 600  # characters of each part of the example that is shown


@app.callback()
def root() -> None:
    """Inspect, convert and curate data."""


@app.command()
def inspect(
    source: Source,
    split: Split = "train",
    name: Name = None,
    form: Form = None,
    skip_bad: SkipBad = False,
    limit: Limit = None,
    model: Annotated[
        str | None, typer.Option(help="Count tokens too, with this model's tokenizer.")
    ] = None,
    show: Annotated[
        bool, typer.Option("--show", help="Show a row's text, and with --model its tokens.")
    ] = False,
    row: Annotated[int, typer.Option(help="Which row --show shows; the first is 1.")] = 1,
    json: Json = False,
) -> None:
    """Say what is in the data and what to mend: lengths, duplicates, balance, bias, bad rows.

    No row's text is printed unless --show asks for it.
    """
    from trueline.data import inspect_examples, load_examples
    from trueline.errors import UserError

    if row < 1 or (row > 1 and not show):
        raise UserError(f"--row counts from 1 and goes with --show, got --row {row}")
    encode = _encoder(model)
    examples = load_examples(
        source, split=split, name=name, form=form, skip_bad=skip_bad, limit=limit
    )
    with _progress(examples):
        summary = inspect_examples(examples, encode=encode)
        example = next(islice(examples, row - 1, None), None) if show else None
    if show and example is None:
        raise UserError(f"--row {row}: there are {summary.examples} rows that can be used")
    if json:
        shown = {} if example is None else {"shown": _plain(example, encode)}
        print_json({"source": source, **summary.to_dict(), **shown})
        return
    _show(source, summary)
    if example is not None:
        _show_example(example)
        if encode is not None:
            _show_tokens(example, encode)


@app.command()
def convert(
    source: Source,
    output: Annotated[Path, typer.Argument(help="File to write; its ending says the type.")],
    to: Annotated[str, typer.Option(help="preference, unpaired, sft, kldo or example.")],
    split: Split = "train",
    name: Name = None,
    form: Form = None,
    skip_bad: SkipBad = False,
    limit: Limit = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a file that exists.")
    ] = False,
    json: Json = False,
) -> None:
    """Write the data in another form or file type."""
    from trueline.data import load_examples, write_examples

    examples = load_examples(
        source, split=split, name=name, form=form, skip_bad=skip_bad, limit=limit
    )
    with _progress(examples):
        written = write_examples(examples, output, to, overwrite=overwrite)
    report = examples.report.to_dict()
    if json:
        print_json({"source": source, "output": output, **asdict(written), "read": report})
        return
    console.print(Text(f"{written.rows:,} rows in form {to!r} written to {output}"))
    if written.left_out:
        out.print(f"{written.left_out} completions have no place in this form; left out")
    _show_dropped(report["dropped"])


def _encoder(model: str | None) -> Encoder | None:
    """What counts tokens and shows the completion mask: the training's own encoder, uncut."""
    if model is None:
        return None
    from trueline.batching import Encoder
    from trueline.config import ModelArguments
    from trueline.models import load_tokenizer

    return Encoder(load_tokenizer(ModelArguments(model_name_or_path=model)), max_length=None)


def _progress(examples: Examples) -> AbstractContextManager[None]:
    """On stderr, how many rows were read, while it lasts."""
    return polled("reading rows", lambda: examples.report.rows)


def _show(source: str, summary: DataSummary) -> None:
    totals = (
        f"  form {summary.form}  {summary.rows:,} rows  {summary.examples:,} examples  "
        f"{summary.completions:,} completions  {summary.pairs:,} pairs"
    )
    out.print(Text(source, "bold") + Text(totals))
    for unit, lengths in (("characters", summary.characters), ("tokens", summary.tokens)):
        if lengths:
            table = Table("part", "n", "min", "median", "mean", "p95", "max", title=unit)
            for part, row in lengths.items():
                table.add_row(part, *(f"{value:,.0f}" for value in asdict(row).values()))
            out.print(table)
    facts = Table("what", "value", title="contents")
    for rate in summary.rates:
        facts.add_row(rate.name.replace("_", " "), str(rate))
    for what, count in summary.duplicates.items():
        facts.add_row("contradictions" if what[0] == "c" else f"repeated {what}", f"{count:,}")
    for kind, counts in summary.balance.items():
        facts.add_row(kind, ", ".join(f"{count:,} {value}" for value, count in counts.items()))
    out.print(facts)
    _show_dropped(summary.dropped)
    if summary.unread:
        named = ", ".join(f"{name} ({count:,} rows)" for name, count in summary.unread.items())
        out.print(Text(f"• Columns that are not read: {named}.", "yellow"))
    for sentence in [*(f"{line}." for line in summary.encoding), *summary.advice]:
        out.print(Text(f"• {sentence}", "yellow"))


def _show_dropped(dropped: dict[str, Any]) -> None:
    if not dropped:
        return
    table = Table("dropped because", "rows", "first places", title="dropped")
    for reason, drop in dropped.items():
        table.add_row(Text(reason), f"{drop['count']:,}", Text(", ".join(drop["places"])))
    out.print(table)


def _show_example(example: Example) -> None:
    """One example, each part labeled; its text is never markup and never a terminal's command."""
    from trueline.batching.show import roles

    contents = (completion.content for completion in example.completions)
    parts = [("prompt", example.prompt), *zip(roles(example), contents, strict=True)]
    out.rule(Text(example.id or "example"))
    for role, content in parts:
        text = content
        if not isinstance(text, str):
            text = "\n".join(f"{turn.role}: {turn.content}" for turn in text)
        shown = "".join(c if c.isprintable() or c in "\n\t" else "�" for c in text[:SHOWN])
        if len(text) > SHOWN:
            shown += f"… ({len(text):,} characters)"
        style = STYLES.get(role, "red" if role == "undesirable" else "cyan")
        out.print(Text(f"{role.upper()} ", f"bold {style}") + Text(shown, style))


def _show_tokens(example: Example, encode: Encoder) -> None:
    """The tokens as training sees them: what is scored stands out, the rest is context."""
    from trueline.batching.show import parts

    out.rule(Text("tokens: the scored ones are reversed"))
    for part in parts(encode, example):
        scored = sum(token.scored for token in part.tokens)
        line = Text(f"{part.role.upper()} {len(part.tokens)} tokens, {scored} scored\n", "bold")
        for token in part.tokens:
            line.append(_visible(token.text), "reverse green" if token.scored else "dim")
            line.append("\n" if token.text.endswith("\n") else "|", "dim")
        out.print(line)


def _visible(text: str) -> str:
    """A token's text with white space that can be seen, and nothing that moves the cursor."""
    text = text.replace("\n", "↵").replace(" ", "·").replace("\t", "→")
    return "".join(c if c.isprintable() else "�" for c in text)


def _plain(example: Example, encode: Encoder | None) -> dict[str, Any]:
    """A row for --json: its text, and its tokens where there is a tokenizer."""
    from trueline.batching.show import parts, roles

    found = {
        "id": example.id,
        "prompt": example.prompt,
        "completions": [
            {"role": role, "content": completion.content}
            for role, completion in zip(roles(example), example.completions, strict=True)
        ],
    }
    if encode is not None:
        found["tokens"] = [asdict(part) for part in parts(encode, example)]
    return found
