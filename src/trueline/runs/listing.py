"""The runs below a folder: what each is, how far it is, and its headline figures."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any

from trueline.data.sources import MANIFEST
from trueline.errors import UserError
from trueline.results import Finding, Metric
from trueline.runs import record
from trueline.runs.record import Key
from trueline.runs.run import Run
from trueline.runs.state import State, Status, status

FIGURES = 3
"""Headline figures of a run at most."""

LEADING = (
    (Key.HELD_OUT, ("reward accuracy, after", "ranking accuracy, after")),
    (Key.SAFETY, ("attack success, direct", "over-refusal", "correct answers")),
)
"""Findings and their measures that tell most of a run, the first first."""


@dataclass(frozen=True)
class Entry:
    """One run of a list.

    Args:
        path: its folder; of a curation job that is finished, its manifest.
        name: the path below the folder that was listed.
        verb: which made it; None where nothing says so.
        objective: what it trained with, if anything.
        data: what it worked on.
        state: created, resumed, prepared, training, working, finished or broken off; None where a
            folder has no record of it.
        since: when it got there.
        reason: why it was broken off.
        headline: the figures that tell most.
        command: what began it; None where that was Python.
        states: all of them with their times.
    """

    path: Path
    name: str
    verb: str | None = None
    objective: str | None = None
    data: str | None = None
    state: State | None = None
    since: str | None = None
    reason: str = ""
    headline: Sequence[Metric] = ()
    command: str | None = None
    states: Sequence[tuple[str, str]] = ()

    @property
    def run(self) -> Run:
        """The run itself."""
        return Run(self.path if self.path.is_dir() else self.path.parent)

    @property
    def figures(self) -> str:
        """The headline figures in a line."""
        return "; ".join(f"{metric.name} {metric}" for metric in self.headline)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready data."""
        headline = [asdict(metric) for metric in self.headline]
        states = [list(pair) for pair in self.states]
        return {**vars(self), "path": str(self.path), "headline": headline, "states": states}


class Listing(Sequence[Entry]):
    """Runs, as a sequence, a table in a notebook, or a DataFrame."""

    def __init__(self, folder: Path, entries: Sequence[Entry]) -> None:
        self.folder, self.entries = folder, entries

    def __getitem__(self, index: Any) -> Any:
        return self.entries[index]

    def __len__(self) -> int:
        return len(self.entries)

    def __repr__(self) -> str:
        return f"{len(self)} runs in {self.folder}"

    def to_frame(self) -> Any:
        """The runs as a pandas DataFrame, one a row."""
        import pandas as pd

        return pd.DataFrame(self._cells(), columns=list(COLUMNS))

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{name}</th>" for name in COLUMNS)
        rows = "".join(
            f"<tr>{''.join(f'<td>{escape(str(cell or str()))}</td>' for cell in row)}</tr>"
            for row in self._cells()
        )
        return f"<table><tr>{head}</tr>{rows}</table>"

    def _cells(self) -> list[list[Any]]:
        return [[getattr(entry, name) for name in COLUMNS] for entry in self.entries]


COLUMNS = ("name", "verb", "objective", "data", "state", "since", "figures", "reason")


def listed(folder: str | os.PathLike[str] = "runs") -> Listing:
    """The runs in a folder and below it, by path.

    Those that a study made for itself are the study's and not listed apart.

    Raises:
        UserError: there is no such folder.

    Example:
        >>> listed("runs").to_frame()  # doctest: +SKIP
    """
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"there is no folder {root}; give the one that holds your runs")
    return Listing(root, [_entry(path, root) for path in sorted(_found(root))])


def _found(root: Path) -> Iterator[Path]:
    """Folders of runs, and manifests of finished curation jobs."""
    for place, folders, files in os.walk(root):
        path, names = Path(place), set(files)
        folders[:] = sorted(name for name in folders if not _passed(name))
        if names & {record.STATE, record.CONFIG, record.FINDINGS}:
            kept = status(path)
            if kept is not None and kept.verb == "reproduce":
                folders.clear()
            yield path
        yield from (path / name for name in sorted(names) if name.endswith(MANIFEST))


def _passed(name: str) -> bool:
    """Whether a folder is no place of runs: hidden, but for a curation job's, or a checkpoint."""
    return (name.startswith(".") and not name.endswith(".work")) or name.startswith("checkpoint-")


def _entry(path: Path, root: Path) -> Entry:
    if path.is_file():
        return _curated(path, root)
    run, kept = Run(path), status(path)
    shown = str(path.relative_to(root)) if path != root else run.name
    headline = headlines(run.findings)
    if kept is None:
        data, losses = run.config.get("dataset_name"), run.config.get("loss_type")
        name = " + ".join(losses) if isinstance(losses, list) else losses
        command = run.manifest.get("command")
        verb = str(command or "").removeprefix("trueline ").partition(" ")[0]
        return Entry(path, shown, verb or None, name, data, headline=headline, command=command)
    if path.name.endswith(".work"):  # a curation job's, named as its output
        shown = str(Path(shown).with_name(path.name.removeprefix(".").removesuffix(".work")))
    return Entry(path, shown, kept.verb, kept.objective, kept.data, kept.state, kept.since,
                 _why(kept), headline, kept.command, kept.states)  # fmt: skip


def _why(kept: Status) -> str:
    owner = kept.owner
    away = owner is not None and not owner.local and kept.state not in (State.FINISHED,)
    return kept.why or (f"on {owner.host}" if away and owner is not None else "")


def _curated(path: Path, root: Path) -> Entry:
    """A finished curation job, by the manifest beside its output."""
    facts = Run(path.parent).mapping(path)
    source = facts.get("inputs", {}).get("source", {}).get("source")
    finding = facts.get("finding")
    headline = headlines([Finding.from_dict(finding)]) if isinstance(finding, Mapping) else []
    states = [(str(name), str(at)) for name, at in facts.get("states", ())]
    outputs = ", ".join(facts.get("outputs", {})) or path.name
    name = str((path.relative_to(root)).with_name(outputs))
    return Entry(path, name, f"data {facts.get('verb')}", None, source, State.FINISHED,
                 facts.get("created"), "", headline, None, states)  # fmt: skip


def headlines(findings: Sequence[Finding]) -> list[Metric]:
    """The figures that tell most of a run: of known findings the known ones, else the first."""
    named = {finding.name: finding for finding in findings}
    for key, names in LEADING:
        found = {m.name: m for m in (named[key].metrics if key in named else ())}
        chosen = [found[name] for name in names if name in found]
        if chosen:
            return chosen[:FIGURES]
    judged = [finding for finding in findings if Key.judge_of(finding) is not None]
    return [metric for finding in judged or findings for metric in finding.metrics][:FIGURES]
