"""What it takes to do it again: the data, the configuration, the versions, the command."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from trueline.report.blocks import Block, Cell, Facts, Section, Table, Text
from trueline.report.findings import draw
from trueline.report.pages.load import curation_of
from trueline.results import Finding
from trueline.runs.record import CONFIG, Run

SECRET = re.compile(r"(hub_token|api_key|password|secret)$")
"""Names of options whose values no page should show."""

OF_DATA = ("data", "data_hash", "train_examples", "encoding")
"""What the manifest tells of the data."""


def data_section(runs: Sequence[Run]) -> Iterator[Section]:
    """What each run was trained on, and how that was made, as far as it was recorded."""
    blocks: list[Block] = []
    for run in runs:
        facts = run.manifest
        rows: list[list[Cell]] = [["data set", str(facts["data"])]] if facts.get("data") else []
        if isinstance(facts.get("train_examples"), int):
            rows.append(["examples trained on", facts["train_examples"]])
        if isinstance(facts.get("encoding"), Mapping):
            rows += [[str(k).replace("_", " "), v] for k, v in facts["encoding"].items()]
        if facts.get("data_hash"):
            rows.append(["SHA-256", str(facts["data_hash"])])
        if rows:
            blocks.append(Table(("", "value"), rows, run.name if len(runs) > 1 else ""))
        blocks += _curated(run)
    if blocks:
        yield Section("Data", "", blocks)


def _curated(run: Run) -> Iterator[Block]:
    """What the manifest beside a curated file says of its making."""
    curation = curation_of(run)
    if not isinstance(curation.get("finding"), Mapping):
        return
    finding = Finding.from_dict(curation["finding"])
    yield Text(f"Made by trueline data {curation.get('verb', '')}. {finding.summary}")
    drawn = draw(finding)
    yield from drawn.blocks
    run.missing.extend(drawn.problems)
    counts = curation.get("counts")
    rows: list[list[Cell]] = [[str(k), v] for k, v in dict(counts or {}).items()]
    dropped = curation.get("dropped")
    rows += [[f"left out: {why}", d.get("count")] for why, d in dict(dropped or {}).items()]
    if rows:
        yield Table(("rows", "count"), rows, folded=True, title="Rows kept and left out")


def again_section(runs: Sequence[Run]) -> Section:
    """Command, configuration and versions of each run."""
    blocks: list[Block] = []
    for run in runs:
        suffix = "" if len(runs) == 1 else f", {run.name}"
        facts = {key: value for key, value in run.manifest.items() if key not in OF_DATA}
        command = command_of(run)
        facts.pop("command", None)
        if command:
            blocks.append(Facts(f"Command{suffix}", {}, command, open=True))
        if run.config:
            blocks.append(Facts(f"Configuration{suffix}", without_secrets(run.config)))
        if facts:
            blocks.append(Facts(f"Versions and machine{suffix}", without_secrets(facts)))
    text = "" if blocks else "No configuration and no manifest were recorded."
    return Section("Run it again", text, blocks)


def command_of(run: Run) -> str:
    """What to type: the recorded command; where that names no options, the run's own file."""
    command = run.manifest.get("command", "")
    line = shlex.join(map(str, command)) if isinstance(command, list) else str(command or "")
    if line in ("trueline align", "trueline evaluate") and run.config:
        option = "--output_dir" if line.endswith("align") else "--output"
        config, folder = shlex.quote(str(run.path / CONFIG)), f"{run.path}-again"
        return f"{line} --config {config} {option} {shlex.quote(folder)}"
    return line


def without_secrets(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The same, with tokens and keys left out.

    Example:
        >>> without_secrets({"hub_token": "x", "seed": 1})
        {'hub_token': '(not shown)', 'seed': 1}
    """
    return {
        key: "(not shown)" if value is not None and SECRET.search(str(key)) else value
        for key, value in facts.items()
    }
