"""A run in Python: what `trueline align` and `trueline evaluate` return, and what is made of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from trueline.errors import UserError
from trueline.results import frame, to_html
from trueline.runs import record
from trueline.verbs import verb


class Run(record.Run):
    """A run directory with its model, and the verbs that take it further.

    Example:
        >>> run = Run("runs/dpo")  # doctest: +SKIP
        >>> run.diagnose().to_frame()  # doctest: +SKIP
    """

    @classmethod
    def of(cls, run: str | os.PathLike[str] | record.Run) -> Run:
        """A run that is there.

        Raises:
            UserError: there is no such directory.
        """
        return cls(record.Run.open(run).path)

    @property
    def metrics(self) -> Any:
        """The training's log as a pandas DataFrame, one row a logging step."""
        import pandas as pd

        return pd.DataFrame(list(self.rows))

    def model(self, **how: Any) -> Any:
        """The trained model, loaded; ``how`` is dtype, device, trust_remote_code."""
        from trueline.diagnostics.question import Loader

        return Loader(**{"quiet": True, **how}).model(self._place())

    def tokenizer(self) -> Any:
        """Its tokenizer."""
        from trueline.diagnostics.question import Loader

        return Loader().tokenizer(self._place())

    def _place(self) -> str:
        if not self.holds_model:
            raise UserError(f"{self.path} holds no model; call save_model() on its trainer")
        return str(self.path)

    def evaluate(self, **options: Any) -> Run:
        """:func:`trueline.evaluate` on this run's model."""
        found: Run = verb("evaluate")(self, **options)
        return found

    def diagnose(self, **options: Any) -> Any:
        """:func:`trueline.diagnose` on this run."""
        return verb("diagnose")(self, **options)

    def report(self) -> Any:
        """:func:`trueline.report` on this run."""
        return verb("report")(self)

    def figures(self) -> list[Any]:
        """The training's curves as plotly figures; none where nothing was logged."""
        from trueline.report.drawing.curves import curve_figure
        from trueline.report.pages.training import training_curves

        found = training_curves(self.rows, "")
        return [] if found is None else [curve_figure(panel) for panel in found.panels]

    def to_frame(self) -> Any:
        """All metrics of all findings as a pandas DataFrame."""
        return frame(self.findings)

    def _repr_html_(self) -> str:
        return to_html(self.findings, f"Run {self.name}")


def opened(path: str | Path) -> Run:
    """The run in a folder.

    Raises:
        UserError: there is no such directory.
    """
    return Run.of(path)
