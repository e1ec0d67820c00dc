"""Every run's result as a line of JSON: numbers only, small enough to commit, enough to recompute
every verdict."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from trueline.errors import UserError
from trueline.files import write_text
from trueline.reproduce.engine import RESULT, Done
from trueline.reproduce.runs import EXPERIMENTS, Run
from trueline.reproduce.versions import STUDIES, Version

FIELDS = ("experiment", "version", "options", "seed", "made", "seconds", "values")


def results_in(folder: Path) -> Iterator[dict[str, Any]]:
    """What the runs in a folder gave; also while others are still at work there."""
    for path in folder.glob(f"*/{RESULT}"):
        try:
            found = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError):  # a reader beside a writer
            continue
        if all(name in found for name in FIELDS):
            yield found


def write_lines(results: Iterable[Mapping[str, Any]], path: Path) -> None:
    """One line a run, in an order that new runs do not disturb."""
    rows = [{name: one[name] for name in FIELDS} for one in results]
    for row in rows:
        row["values"] = {name: _short(value) for name, value in row["values"].items()}
    lines = {
        json.dumps([row["experiment"], row["options"], row["seed"]], sort_keys=True): row
        for row in rows
    }
    text = "".join(json.dumps(lines[key], sort_keys=True) + "\n" for key in sorted(lines))
    write_text(path, text)


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.7g}")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a file; of a folder, the results of its runs.

    Raises:
        UserError: neither, or a line that is none.
    """
    if path.is_dir():
        inner = path / "runs"
        return list(results_in(inner if inner.is_dir() else path))
    try:
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    except FileNotFoundError:
        raise UserError(f"there are no kept results at {path}") from None
    except ValueError as error:
        raise UserError(f"{path} holds a line that is no JSON: {error}") from None
    for row in rows:
        if not isinstance(row, dict) or not set(FIELDS) <= set(row):
            raise UserError(f"{path}: each line needs {', '.join(FIELDS)}")
    return rows


def rows_of(versions: Iterable[Version], studies: Path = STUDIES) -> list[dict[str, Any]]:
    """The kept lines of these versions, as far as there are any."""
    paths = [path for version in versions if (path := studies / version.lines).exists()]
    return [row for path in paths for row in read_lines(path)]


def key_of(row: Mapping[str, Any]) -> str | None:
    """The key of the run that a line is of; None for an experiment's older version."""
    name = row["experiment"]
    if name not in EXPERIMENTS or EXPERIMENTS[name].version != row["version"]:
        return None
    return Run(name, row["options"], row["seed"]).key


def done_of(rows: Iterable[Mapping[str, Any]]) -> Done:
    """Kept results as if they had just been run; those of an experiment's older version are not
    taken."""
    done = Done()
    for row in rows:
        key = key_of(row)
        if key is None:
            continue
        done.values[key], done.seconds[key] = row["values"], row["seconds"]
        done.kept += 1
    return done
