"""Examples changed, or left out, one by one on their way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

from trueline.data.load import LoadReport
from trueline.errors import UserError
from trueline.records import Example


class Stream(Protocol):
    """Examples that can be read again: of one source, of several, or changed on their way."""

    @property
    def source(self) -> str | None: ...

    @property
    def name(self) -> Any: ...

    @property
    def report(self) -> LoadReport: ...

    def __iter__(self) -> Iterator[Example]: ...


class Mapped:
    """A stream of examples as ``change`` makes them; each iteration reads the source anew.

    Args:
        examples: what is read.
        change: an example's other form, or None to leave it out.
        facts: JSON-ready; says what ``change`` does.
        empty: said where nothing is left.

    Raises:
        UserError: nothing is left.
    """

    def __init__(
        self,
        examples: Stream,
        change: Callable[[Example], Example | None],
        facts: Any,
        *,
        empty: str = "no row is left",
    ) -> None:
        self.examples, self.change, self.facts, self.empty = examples, change, facts, empty

    @property
    def source(self) -> str | None:
        """The path or hub id that is read."""
        return self.examples.source

    @property
    def report(self) -> LoadReport:
        """What became of the rows of the latest reading so far."""
        return self.examples.report

    @property
    def name(self) -> Any:
        """What stands for the examples; see :attr:`Examples.name`."""
        name = self.examples.name
        return None if name is None else [name, self.facts]

    def __iter__(self) -> Iterator[Example]:
        left = False
        for example in self.examples:
            changed = self.change(example)
            if changed is not None:
                left = True
                yield changed
        if not left:
            raise UserError(self.empty)
