"""One way to run every curation verb: in chunks, over ranks, resumable, with a manifest.

A verb *maps* what costs something (a judge, an embedding, a model) over chunks of examples, and
then *writes* what the collected notes decide. Each finished chunk is a small file in a work folder
beside the output, named by the content of its examples; an interrupted run finds it again and goes
on. Rank r of w works on chunks r, r + w, ...; rank 0 alone writes, in the order of the input.
Over several machines see :mod:`trueline.curation.jobs.chunks`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, TypeAlias

from trueline.curation.jobs.chunks import (
    Chunk,
    Note,
    Notes,
    after_stage,
    before_writing,
    present,
    sha256,
)
from trueline.curation.jobs.disk import batched
from trueline.data.convert import check_output, write_examples
from trueline.data.load import Examples, LoadReport
from trueline.data.readers import DataError
from trueline.data.sources import MANIFEST
from trueline.errors import UserError
from trueline.files import write_json, write_text
from trueline.identity import Identity
from trueline.interrupts import piece_done
from trueline.processes import rank, started
from trueline.records import Example, RecordError
from trueline.results import Finding, manifest
from trueline.runs.record import Run
from trueline.runs.state import State, created, held, note, reached, status

Progress: TypeAlias = Callable[[str, int], None]
"""Called with (what is being done, examples done so far)."""


def work_folder(output: Path) -> Path:
    """Where a job keeps what it has done so far: beside its output."""
    return output.parent / f".{output.name}.work"


@contextlib.contextmanager
def alone(output: Path) -> Iterator[None]:
    """One job at a time for an output.

    Raises:
        UserError: another process is at work on it.
    """
    if rank() != 0:
        yield
        return
    folder = work_folder(output)
    try:
        with held(folder):
            yield
    finally:
        with contextlib.suppress(OSError):  # it is empty where nothing was begun
            folder.rmdir()


@dataclass(frozen=True, slots=True)
class Curated:
    """What a verb made: files, and what is to be said about them."""

    finding: Finding
    outputs: tuple[Path, ...]
    manifest: Mapping[str, Any]
    manifest_path: Path


@dataclass
class Job:
    """A verb at work on one source.

    Args:
        verb: its name, for the manifest.
        source: the examples; read once a pass, so an iterator will not do.
        output: the file to write, or the folder of several.
        options: every option that decides the result, JSON-ready.
        form: the form to write, one of ``TARGETS``.
        overwrite: replace files that exist.
        progress: told how far each pass is.
        also: further sources by name, hashed into the manifest.
    """

    verb: str
    source: Examples
    output: Path
    options: Mapping[str, Any]
    form: str = "example"
    overwrite: bool = False
    progress: Progress | None = None
    also: Mapping[str, Examples] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.output = Path(self.output)
        self.folder = not self.output.suffix
        if not self.folder:
            self.check(self.output)
        self.dropped = LoadReport()
        self.resumed = self.stages = 0
        self.content: str | None = None
        self.prompts = self.responses = self.most_responses = 0
        self.written: dict[str, dict[str, Any]] = {}
        self.work = work_folder(self.output)

    @property
    def leader(self) -> bool:
        """Whether this process writes."""
        return rank() == 0

    def check(self, *paths: Path) -> None:
        """Raise where a file cannot be written, before any work is done; one that this very job
        wrote before it was broken off is written again."""
        kept = status(work_folder(self.output))
        own = kept.facts.get("written", ()) if kept and kept.identity == self.identity else ()
        for path in paths:
            check_output(path, self.form, overwrite=self.overwrite or path.name in own)

    @property
    def identity(self) -> Mapping[str, Any]:
        """What decides the result, as far as it is known before the source is read."""
        facts = {
            "verb": self.verb,
            "source": [str(file) for file in self.source.files] or self.source.source,
            "options": dict(self.options),
            "form": self.form,
            "version": metadata.version("trueline"),
        }
        return Identity.of(facts, {}).facts

    def begin(self) -> None:
        """Keep a record of the job, for as long as it is at work. Of shares none is kept: there are
        several at once, and their files say what is done."""
        shard = present()
        if shard is not None and shard.index is not None:
            self.work.mkdir(parents=True, exist_ok=True)
            return
        run = Run(self.work)
        kept = status(run)
        if not self.leader or (kept is not None and kept.mine):
            return
        self.work.mkdir(parents=True, exist_ok=True)
        resumed = kept is not None and kept.identity == self.identity
        data = self.source.source or "rows in memory"
        created(run, f"data {self.verb}", data=data, identity=self.identity, resumed=resumed)
        reached(run, State.WORKING)

    def examples(self, what: str = "reading") -> Iterator[Example]:
        """One pass over the source."""
        for chunk in self.chunks(1024, what):
            yield from chunk.examples

    def chunks(self, size: int, what: str) -> Iterator[Chunk]:
        """One pass in chunks; a source that changes between two passes is an error."""
        whole = hashlib.blake2b(digest_size=16)
        rows = before = most = 0
        for index, examples in enumerate(batched(self.source, size)):
            text = "".join(map(repr, examples)).encode(errors="surrogatepass")
            whole.update(text)
            digest = hashlib.blake2b(text, digest_size=10).hexdigest()
            yield Chunk(index, examples, digest, before)
            rows += len(examples)
            counts = [len(example.completions) for example in examples]
            before, most = before + sum(counts), max(most, *counts)
            if self.progress is not None:
                self.progress(what, rows)
            piece_done()
        content = whole.hexdigest()
        if self.content not in (None, content):
            raise DataError(self.source.source or "source", "it changed while it was being read")
        self.content = content
        self.prompts, self.responses, self.most_responses = rows, before, most

    def map(
        self,
        stage: str,
        function: Callable[[Chunk], Sequence[Note]],
        *,
        key: Any = None,
        size: int = 256,
    ) -> Notes:
        """Work out one note for each example: this rank's share now, the others' when read.

        Args:
            stage: names the pass in progress and on disk.
            function: a chunk's notes, one for each example.
            key: whatever the notes depend on beside the examples (options, a model's hash),
                JSON-ready. An interrupted run's notes are reused where it is the same.
            size: examples in a chunk, the most an interruption can cost.
        """
        version = metadata.version("trueline")
        identity = json.dumps([self.verb, stage, key, size, version], sort_keys=True, default=str)
        name = hashlib.blake2b(identity.encode(), digest_size=6).hexdigest()
        self.begin()
        folder = self.work / f"{stage.replace(' ', '-')}-{name}"
        folder.mkdir(parents=True, exist_ok=True)
        self.stages += 1
        shard = present()
        merging = shard is not None and shard.index is None
        turns, turn = started(), rank()
        if shard is not None and shard.index is not None:
            turns, turn = turns * shard.count, turn + started() * (shard.index - 1)
        files = []
        for chunk in self.chunks(size, stage):
            path = folder / f"{chunk.index:07d}-{chunk.digest}.json"
            files.append(path)
            if chunk.index % turns != turn or merging:
                continue
            if path.exists():
                self.resumed += len(chunk.examples)
                continue
            notes = list(function(chunk))
            if len(notes) != len(chunk.examples):
                raise UserError(
                    f"{stage}: expected one result an example, got {len(notes)} for "
                    f"{len(chunk.examples)}"
                )
            write_text(path, json.dumps(notes, allow_nan=False))
            piece_done()
        if shard is not None:
            after_stage(stage, [path for path in files if not path.exists()])
        return Notes(files)

    def drop(self, example: Example, reason: str) -> None:
        """Count an example that does not go into the output, and why."""
        self.dropped.drop(example.id or "example", RecordError(reason))

    def write(self, examples: Iterable[Example], path: Path | None = None) -> int:
        """Write one output file whole or not at all; the number of rows.

        Raises:
            DataError: no row is left; the message says what took most of them.
        """
        path = self.output if path is None else path
        before_writing(self.stages)
        self.check(path)
        self.begin()
        part = self.work / path.name
        report = write_examples(self._some(examples, path), part, self.form, overwrite=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        note(Run(self.work), written=[*self.written, path.name])
        os.replace(part, path)
        self.written[path.name] = {**asdict(report), "sha256": sha256(path)}
        return report.rows

    def _some(self, examples: Iterable[Example], path: Path) -> Iterator[Example]:
        empty = True
        for example in examples:
            empty = False
            yield example
        if empty:
            reasons = self.dropped.dropped
            most = max(reasons, key=lambda reason: reasons[reason].count, default="")
            why = f"; most often: {most} ({reasons[most].count})" if most else ""
            raise DataError(path, f"no row is left to write{why}")

    def finish(self, finding: Finding, counts: Mapping[str, int]) -> Curated:
        """Write the manifest beside the output and clear the work folder away."""
        base = self.output / "data" if self.folder else self.output
        name = base.name.removesuffix(".gz").rsplit(".", 1)[0]
        path = base.with_name(name + MANIFEST)
        kept = status(self.work)
        facts = manifest(
            verb=self.verb,
            states=[] if kept is None else kept.states,
            command=sys.argv,
            options=dict(self.options),
            inputs={name: self._input(name) for name in ("source", *self.also)},
            outputs=self.written,
            counts=dict(counts),
            resumed=self.resumed,
            dropped=self.dropped.to_dict()["dropped"],
            finding=finding.to_dict(),
        )
        for package in ("datasketch", "sentence-transformers"):
            if package.replace("-", "_") in sys.modules:
                facts["versions"][package] = metadata.version(package)
        write_json(path, facts)
        shutil.rmtree(self.work, ignore_errors=True)
        files = tuple(base.with_name(name) for name in self.written)
        return Curated(finding, files, facts, path)

    def _input(self, name: str) -> dict[str, Any]:
        examples = self.source if name == "source" else self.also[name]
        return {
            "source": examples.source or "rows in memory",
            "sha256": {file.name: sha256(file) for file in examples.files},
            "content": self.content if name == "source" else None,
            "read": examples.report.to_dict(),
        }
