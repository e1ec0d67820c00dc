"""The run directory: its only reader and writer.

Whatever makes a run (training, from the command line or from Python, an evaluation, a comparison)
writes it through :class:`Run`, and whatever looks at one reads it through the same. A folder holds

    run.json            how far it is: states and times, identity, owner (``runs/state.py``)
    config.yaml         what was asked for, resolved
    manifest.json       versions, machine, data hashes, seeds: what it takes to do it again
    metrics.jsonl       the training's log, one row a logging step
    before.json         what was measured before the first step, for runs that are resumed
    findings.json       what was found, by :class:`Key`
    samples.jsonl       prompts and answers
    judgements.jsonl    an evaluation's log, and evaluation.json its settings
    comparison.json, scores.json
    README.md           the model card, beside the model itself

and evaluations in folders below it. Every file is written whole or not at all. Reading is lenient:
a piece that is absent or broken is left out and named in ``missing``. No other module names one of
these files; a test holds it.

This module stands far below the rest of its package, so that training, evaluation and report can
read and write runs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

from trueline.errors import UserError
from trueline.files import append, read_json, write_json, write_text
from trueline.results import Finding, manifest

STATE = "run.json"
CONFIG = "config.yaml"
MANIFEST = "manifest.json"
METRICS = "metrics.jsonl"
BEFORE = "before.json"
FINDINGS = "findings.json"
SAMPLES = "samples.jsonl"
JUDGEMENTS = "judgements.jsonl"
SETTINGS = "evaluation.json"
COMPARISON = "comparison.json"
SCORES = "scores.json"
CARD = "README.md"

FINISHED = (
    FINDINGS,
    "model.safetensors",
    "model.safetensors.index.json",
    "adapter_model.safetensors",
)
"""Files by which a folder is known to hold a run that came to its end."""

Row: TypeAlias = Mapping[str, Any]


class Key(StrEnum):
    """The names of findings that more than one part of the house knows."""

    VERDICT = "verdict"
    HELD_OUT = "held-out"
    RANKING = "ranking"
    ENTANGLEMENT = "entanglement"
    SEPARATION = "separation"
    SEPARATION_BEFORE = "separation before"
    SEPARATION_CHANGE = "separation change"
    PROFILE = "separation profile"
    PROFILE_BEFORE = "separation profile before"
    SAFETY = "safety"
    ANSWERS = "answers"
    WATCHED = "answers while training"
    JUDGED = "judged by "

    @classmethod
    def judged(cls, judge: str) -> str:
        """The finding of one judge of an evaluation."""
        return f"{cls.JUDGED}{judge}"

    @staticmethod
    def judge_of(finding: Finding) -> str | None:
        """The judge whose finding it is; None where it is no judge's."""
        name = finding.name
        return name.removeprefix(Key.JUDGED) if name.startswith(Key.JUDGED) else None


class Run:
    """A run directory.

    Args:
        path: the folder; it need not be there yet.

    Example:
        >>> import tempfile
        >>> run = Run(tempfile.mkdtemp())
        >>> run.save([Finding(Key.HELD_OUT, "All well.")])
        >>> Run(run.path).finding(Key.HELD_OUT).summary, Run(run.path).config
        ('All well.', {})
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.name = self.path.resolve().name
        self.missing: list[str] = []

    @classmethod
    def open(cls, path: str | os.PathLike[str] | Run, what: str = "") -> Run:
        """A run that is there.

        Raises:
            UserError: there is no such directory.
        """
        if isinstance(path, Run):
            return path
        if not Path(path).is_dir():
            raise UserError(
                f"{path} is no run directory; give {what or 'the folder that training wrote'}"
            )
        return cls(path)

    @classmethod
    def create(cls, path: str | os.PathLike[str]) -> Run:
        """A folder for a run, made where it is missing.

        Raises:
            UserError: it is not a folder and cannot become one.
        """
        try:
            Path(path).mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise UserError(f"{path} is not a folder and cannot become one") from None
        return cls(path)

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r})"

    def has(self, name: str) -> bool:
        """Whether one of its files is there."""
        return (self.path / name).is_file()

    # --- reading ----------------------------------------------------------------------------------

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """What was asked for; empty where it is not there."""
        return self.mapping(self.path / CONFIG)

    @cached_property
    def manifest(self) -> Mapping[str, Any]:
        """Versions, machine, hashes; empty where it is not there."""
        return self.mapping(self.path / MANIFEST)

    @cached_property
    def rows(self) -> Sequence[Row]:
        """The training's log; an evaluation has none."""
        if self.path in self.judged and not self.has(METRICS):
            return []
        return list(self.lines(METRICS))

    @cached_property
    def before(self) -> Mapping[str, float]:
        """What was measured before the first step."""
        path = self.path / BEFORE
        return read_json(path, "remove it") if path.is_file() else {}

    @cached_property
    def judged(self) -> Sequence[Path]:
        """The folders, this one or below it, that hold an evaluation's log."""
        return sorted({file.parent for file in self.path.rglob(JUDGEMENTS)})

    @property
    def _below(self) -> list[Path]:
        return [folder for folder in self.judged if folder != self.path]

    @cached_property
    def own(self) -> list[Finding]:
        """This folder's findings.

        Raises:
            UserError: they are there and cannot be read.
        """
        if not self.has(FINDINGS):
            return []
        path = self.path / FINDINGS
        try:
            return [Finding.from_dict(value) for value in read_json(path, "measure it again")]
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"{path} cannot be read ({error}); measure it again") from None

    @cached_property
    def findings(self) -> Sequence[Finding]:
        """The run's own findings, then those of evaluations below it; a name that is taken gets the
        folder's."""
        found: list[Finding] = []
        for folder in (self.path, *self._below):
            try:
                for finding in Run(folder).own:
                    taken = any(other.name == finding.name for other in found)
                    name = f"{finding.name} ({folder.name})" if taken else finding.name
                    found.append(replace(finding, name=name))
            except UserError as error:
                place = "" if folder == self.path else f"{folder.relative_to(self.path)}/"
                self.missing.append(f"{place}{FINDINGS} cannot be read ({_why(error)})")
        if not self.has(FINDINGS) and not self._below:
            self.missing.append(f"{FINDINGS} is not there")
        return found

    def finding(self, key: str) -> Finding | None:
        """The finding of that key, or None."""
        return next((finding for finding in self.findings if finding.name == key), None)

    @cached_property
    def samples(self) -> Sequence[Row]:
        """Rows of prompts and answers, of this folder and of evaluations below it."""
        with_samples = [f for f in (self.path, *self._below) if (f / SAMPLES).is_file()]
        return [
            row
            for folder in with_samples or [self.path]
            for row in self.lines(SAMPLES, folder)
            if "prompt" in row
        ]

    def read(self) -> Run:
        """Read every piece, so that ``missing`` is complete."""
        for name in ("config", "manifest", "rows", "findings", "samples"):
            getattr(self, name)
        return self

    @property
    def base_model(self) -> str | None:
        """What the configuration, of the run or of the run it lies in, says it started from."""
        for folder in (self.path, self.path.resolve().parent):
            found = Run(folder).config.get("model_name_or_path")
            if found:
                return str(found)
        return None

    @property
    def holds_model(self) -> bool:
        """Whether the folder holds a model or an adapter."""
        if self.has("adapter_config.json"):
            return True
        try:
            return "model_type" in json.loads((self.path / "config.json").read_text("utf-8"))
        except (OSError, ValueError):
            return False

    def mapping(self, path: Path) -> Mapping[str, Any]:
        """A YAML or JSON file's keys and values; what is wrong with it is noted."""
        if not path.exists():
            self.missing.append(f"{path.name} is not there")
            return {}
        import yaml

        try:
            value = yaml.safe_load(path.read_text("utf-8"))
        except (OSError, yaml.YAMLError, UnicodeDecodeError):
            value = None
        if not isinstance(value, Mapping):
            self.missing.append(f"{path.name} cannot be read")
            return {}
        return value

    def lines(self, name: str, folder: Path | None = None) -> Iterator[Row]:
        """The rows of a file of lines; those that cannot be read are counted and left out."""
        path = (folder or self.path) / name
        if not path.exists():
            self.missing.append(f"{path.name} is not there")
            return
        broken = 0
        for line in path.read_text("utf-8", errors="replace").split("\n"):  # not at U+2028
            try:
                value = json.loads(line) if line.strip() else None
            except ValueError:
                value = broken
            if isinstance(value, Mapping):
                yield value
            elif line.strip():
                broken += 1
        if broken:
            self.missing.append(f"{path.name}: {broken} lines cannot be read and were left out")

    # --- writing ----------------------------------------------------------------------------------

    def write_config(self, values: Mapping[str, Any]) -> None:
        """Keep what was asked for, resolved."""
        import yaml

        write_text(self.path / CONFIG, yaml.safe_dump(dict(values), sort_keys=True))
        self._forget("config")

    def write_manifest(self, **facts: Any) -> Mapping[str, Any]:
        """Keep versions, machine and the given facts; returns all of them."""
        found = manifest(**facts)
        write_json(self.path / MANIFEST, found)
        self._forget("manifest")
        return found

    def write(self, name: str, value: Any) -> None:
        """Keep another JSON document of the run's, such as a comparison."""
        write_json(self.path / name, value)

    def begin_log(self) -> None:
        """A new training starts its own log and findings."""
        for name in (METRICS, BEFORE, FINDINGS):
            (self.path / name).unlink(missing_ok=True)

    def log(self, row: Row) -> None:
        """Append one row to the metrics."""
        append(self.path / METRICS, row)
        self._forget("rows")

    def write_before(self, metrics: Mapping[str, float]) -> None:
        """Keep what was measured before the first step, so that a resumed run still knows it."""
        write_json(self.path / BEFORE, metrics)
        self._forget("before")

    def save(self, findings: Sequence[Finding]) -> None:
        """Write the findings, in place of all that were there."""
        write_json(self.path / FINDINGS, [finding.to_dict() for finding in findings])
        self._forget("own", "findings")

    def keep(self, findings: Sequence[Finding]) -> None:
        """Put findings into the run: those of the same key are replaced, the others stay."""
        new = {finding.name: finding for finding in findings}
        old = [finding for finding in self.own if finding.name not in new]
        first = [finding for name, finding in new.items() if name == Key.VERDICT]
        rest = [finding for name, finding in new.items() if name != Key.VERDICT]
        self.save([*first, *old, *rest])

    def write_samples(self, rows: Iterable[Row], *, ascii_only: bool = False) -> None:
        """Keep prompts and answers."""
        lines = (json.dumps(row, ensure_ascii=ascii_only) + "\n" for row in rows)
        write_text(self.path / SAMPLES, "".join(lines))
        self._forget("samples")

    def _forget(self, *names: str) -> None:
        for name in names:
            self.__dict__.pop(name, None)


def told_apart(names: Sequence[str], paths: Sequence[str | os.PathLike[str]]) -> list[str]:
    """The runs' names; where several are alike, with as many folders above as tell them apart.

    Example:
        >>> told_apart(["kldo", "kldo", "dpo"], ["runs/kldo", "runs/evaluate/kldo", "runs/dpo"])
        ['runs/kldo', 'evaluate/kldo', 'dpo']
    """
    places = [Path(os.path.abspath(path)).parts for path in paths]

    def longer(index: int) -> str:
        others = places[:index] + places[index + 1 :]
        for length in range(2, len(places[index])):
            if all(other[-length:] != places[index][-length:] for other in others):
                return "/".join(places[index][-length:])
        return str(paths[index])

    return [longer(i) if names.count(name) > 1 else name for i, name in enumerate(names)]


def _why(error: UserError) -> str:
    """The reason within a message of :attr:`Run.own`."""
    text = str(error)
    return text[text.find("(") + 1 : text.rfind(")")] if "(" in text else text
