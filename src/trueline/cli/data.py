"""`trueline data`: look at data, turn it from one form into another, and curate it.

Every registered curation step is a command; its options are its function's.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from trueline.cli.common import (
    READING,
    Form,
    Json,
    Limit,
    Name,
    SkipBad,
    Split,
    console,
    out,
    print_json,
)
from trueline.cli.signature import Late, command
from trueline.errors import UserError
from trueline.terminal import counting

if TYPE_CHECKING:
    from trueline.curation import Curated
    from trueline.curation.jobs.step import Curation
    from trueline.data import DataSummary
    from trueline.runs.data import Looked

Source = Annotated[str, typer.Argument(help="A file, a directory, or a hub id (org/name).")]
Output = Annotated[
    Path, typer.Argument(help="File to write, its ending says the type; a folder for several.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")]
Html = Annotated[bool, typer.Option(help="Write an HTML report beside the output.")]
To = Annotated[str, typer.Option(help="Form to write: preference, kldo, example, ...")]

STYLES = {"prompt": "dim", "chosen": "green", "desirable": "green", "rejected": "red"}
SHOWN = 600  # characters of each part of the example that is shown
PLACES = 2  # places of each reason on the terminal; the report and the manifest have more

Share = Annotated[
    str | None,
    typer.Option("--shard", help="Do share i of n of the work, as 2/8, and write nothing."),
]
Merge = Annotated[bool, typer.Option("--merge", help="Write from what all shards found out.")]
SHARING = {"shard": (Share, None), "merge": (Merge, False)}
WRITING = {"overwrite": (Overwrite, False), "html": (Html, True), "json": (Json, False)}


def steps() -> dict[str, Any]:
    """A command for each step."""
    from trueline.runs.curate import every

    made = {}
    for name, step in every().items():
        reading = READING if step.reads else {k: READING[k] for k in ("split", "skip_bad")}
        before = {"source": (Source, ...)} if step.reads else {}
        after = {"to": (To, step.to), **reading, **(SHARING if step.reads else {}), **WRITING}
        made[name] = command(
            _runner(step), step.make, before, after, between={"output": (Output, ...)}
        )
    return made


def _runner(step: Curation) -> Any:
    def run(*, output: Path, html: bool, json: bool, **given: Any) -> None:
        import inspect

        from trueline.runs.curate import curate

        source = given.pop("source") if step.reads else None
        names = list(inspect.signature(step.make).parameters.values())[1:]
        main = [given.pop(p.name) for p in names if p.kind is not p.KEYWORD_ONLY]
        with counting("opening") as progress:
            made = curate(step.name, source, output, *main, progress=progress, **given)
        if made is not None:  # other ranks than 0 made nothing and say nothing
            _present(made, as_json=json, html=html)

    return run


app = typer.Typer(cls=Late(steps), no_args_is_help=True, help="Inspect, convert and curate data.")


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
    from trueline.runs.data import look

    if row < 1 or (row > 1 and not show):
        raise UserError(f"--row counts from 1 and goes with --show, got --row {row}")
    found = look(
        source, split=split, name=name, form=form, skip_bad=skip_bad, limit=limit, model=model,
        row=row if show else None,
    )  # fmt: skip
    if json:
        shown = {"shown": _plain(found)} if show else {}
        print_json({"source": source, **found.summary.to_dict(), **shown})
        return
    _show(source, found.summary)
    if show:
        _show_example(found)
        _show_tokens(found)


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
    from trueline.runs.data import convert as verb

    written = verb(
        source, output, to, overwrite=overwrite, quiet=False,
        split=split, name=name, form=form, skip_bad=skip_bad, limit=limit,
    )  # fmt: skip
    if json:
        print_json({"source": source, "output": output, **asdict(written)})
        return
    console.print(Text(f"{written.rows:,} rows in form {to!r} written to {output}"))
    if written.left_out:
        out.print(f"{written.left_out} completions have no place in this form; left out")
    _show_dropped(written.read["dropped"])


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


def _show_example(found: Looked) -> None:
    """One example, each part labeled; its text is never markup and never a terminal's command."""
    assert found.example is not None
    out.rule(Text(found.example.id or "example"))
    for role, content in [("prompt", found.example.prompt), *found.completions]:
        text = content
        if not isinstance(text, str):
            text = "\n".join(f"{turn.role}: {turn.content}" for turn in text)
        shown = "".join(c if c.isprintable() or c in "\n\t" else "�" for c in text[:SHOWN])
        if len(text) > SHOWN:
            shown += f"… ({len(text):,} characters)"
        style = STYLES.get(role, "red" if role == "undesirable" else "cyan")
        out.print(Text(f"{role.upper()} ", f"bold {style}") + Text(shown, style))


def _show_tokens(found: Looked) -> None:
    """The tokens as training sees them: what is scored stands out, the rest is context."""
    if found.tokens is not None:
        out.rule(Text("tokens: the scored ones are reversed"))
    for part in found.tokens or ():
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


def _plain(found: Looked) -> dict[str, Any]:
    """A row for --json: its text, and its tokens where there is a tokenizer."""
    assert found.example is not None
    plain: dict[str, Any] = {
        "id": found.example.id,
        "prompt": found.example.prompt,
        "completions": [{"role": role, "content": content} for role, content in found.completions],
    }
    if found.tokens is not None:
        plain["tokens"] = [asdict(part) for part in found.tokens]
    return plain


def _present(made: Curated, *, as_json: bool, html: bool) -> None:
    from trueline.runs.curate import write_page

    page = write_page(made) if html else None
    if as_json:
        print_json(
            {
                "outputs": [str(path) for path in made.outputs],
                "manifest": str(made.manifest_path),
                "report": None if page is None else str(page),
                **{key: made.manifest[key] for key in ("counts", "dropped", "finding")},
            }
        )
        return
    _show_made(made)
    if page is not None:
        console.print(Text(f"report  {page}"), soft_wrap=True)


def _show_made(made: Curated) -> None:
    finding = made.finding
    out.print(Text(finding.summary, "bold"))
    if finding.metrics:
        table = Table("what", "value", "n", title="measured")
        for metric in finding.metrics:
            count = "" if metric.n is None else f"{metric.n:,}"
            table.add_row(Text(metric.name), str(metric), count)
        out.print(table)
    _counts("written", made.manifest["counts"])
    dropped = made.manifest["dropped"]
    read = made.manifest["inputs"]["source"]["read"]["dropped"]
    for title, drops in (("left out", dropped), ("bad rows", read)):
        if drops:
            table = Table("because", "rows", "first places", title=title)
            for reason, drop in drops.items():
                places = ", ".join(drop["places"][:PLACES])
                table.add_row(Text(reason), f"{drop['count']:,}", Text(places))
            out.print(table)
    if finding.advice:
        out.print(Text(f"• {finding.advice}", "yellow"))
    for path in (*made.outputs, made.manifest_path):
        console.print(Text(f"wrote  {path}"), soft_wrap=True)  # a path stays one word


def _counts(title: str, counts: dict[str, Any]) -> None:
    table = Table("what", "count", title=title)
    for name, count in counts.items():
        table.add_row(Text(name), f"{count:,}")
    out.print(table)
