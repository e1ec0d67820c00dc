"""A curation step: one decorated function from examples to data with a manifest.

    @curates("shorter")
    def shorter(work: Work, *, max_words: Annotated[int, "Words of a prompt."] = 50):
        \"\"\"Leave long prompts out.\"\"\"
        for example in work.read():
            if len(str(example.prompt).split()) > max_words:
                work.drop(example, "a long prompt")
            else:
                yield example

Its keyword-only arguments are its options. `trueline data shorter`, its help, the manifest, the
report and ``trueline.data.shorter(...)`` know it from then on. A function may also do its own job
and return what it made.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from trueline.curation.jobs.job import Curated, Job, Progress
from trueline.data.load import Examples
from trueline.errors import UserError
from trueline.options import arguments, opening
from trueline.records import Example
from trueline.registry import Registry
from trueline.results import Finding
from trueline.stats.resampling import share


@dataclass
class Work:
    """What a step works on.

    Args:
        source: the examples; None for a step that opens its own.
        output: the file or folder to write.
        form: the form to write.
        split, skip_bad: how sources are read.
        overwrite: replace files that exist.
        progress: told how far each pass is.
    """

    source: Examples | None
    output: Path
    form: str = "example"
    split: str = "train"
    skip_bad: bool = False
    overwrite: bool = False
    progress: Progress | None = None
    _job: Job | None = field(default=None, repr=False)

    @property
    def examples(self) -> Examples:
        """The source.

        Raises:
            UserError: none was given.
        """
        if self.source is None:
            raise UserError("this step opens its own sources")
        return self.source

    @property
    def writing(self) -> dict[str, Any]:
        """How the output is written, as the house's own steps take it."""
        return {"form": self.form, "overwrite": self.overwrite, "progress": self.progress}

    @property
    def job(self) -> Job:
        """The job of a step that yields examples."""
        assert self._job is not None
        return self._job

    def read(self) -> Iterator[Example]:
        """One pass over the source."""
        return self.job.examples("writing")

    def drop(self, example: Example, reason: str) -> None:
        """Count an example that does not go into the output, and why."""
        self.job.drop(example, reason)


@dataclass(frozen=True)
class Curation:
    """A registered step: its function, and whether it reads one source."""

    name: str
    make: Callable[..., Any]
    reads: bool = True
    to: str = "example"

    def __call__(self, work: Work, *main: Any, **options: Any) -> Curated | None:
        """Do it, with options checked by the function's signature.

        Raises:
            UserError: an unknown option, one of the wrong type, or a missing one.
        """
        first = main[0] if main else None
        call = arguments(f"step {self.name!r}", self.make, first, options, skip=1)
        if not inspect.isgeneratorfunction(inspect.unwrap(self.make)):
            made: Curated | None = self.make(work, **call)
            return made
        job = Job(self.name, work.examples, work.output, call, work.form, work.overwrite,
                  work.progress)  # fmt: skip
        work._job = job
        if not job.leader:
            return None
        rows = job.write(self.make(work, **call))
        total = work.examples.report.examples
        dropped = {reason: drop.count for reason, drop in job.dropped.dropped.items()}
        metrics = [share(reason, count, total) for reason, count in dropped.items()]
        summary = f"{rows:,} rows of {total:,} examples; {sum(dropped.values()):,} left out."
        return job.finish(Finding(self.name, summary, metrics), {"examples": total, "rows": rows})


CURATIONS: Registry[Curation] = Registry("curation step")
Step = TypeVar("Step", bound=Callable[..., Any])


def curates(name: str, *, reads: bool = True, to: str = "example") -> Callable[[Step], Step]:
    """Register a function of :class:`Work` as a curation step; its keyword-only arguments are its
    options, those that are opened by other functions (:func:`trueline.options.opening`) by theirs.

    Args:
        name: what `trueline data` calls it.
        reads: whether it reads one source; False for a step that opens several.
        to: the form that is written unless another is asked for.
    """

    def add(function: Step) -> Step:
        CURATIONS.add(name, Curation(name, opening(function), reads, to))
        return function

    return add
