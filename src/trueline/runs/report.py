"""What `trueline report` does: one page of one run, or of several side by side."""

from __future__ import annotations

import os
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from trueline.report import Report, load_run, render_html, render_report, report_from_runs


@dataclass(frozen=True)
class Page:
    """A report that can be saved, or looked at in a notebook; ``missing`` tells by run what it
    could not show."""

    report: Report
    missing: dict[str, list[str]]

    def save(self, path: str | os.PathLike[str] = "report.html") -> Path:
        """Write it as one self-contained HTML file."""
        return render_report(self.report, path)

    def _repr_html_(self) -> str:
        page = escape(render_html(self.report), quote=True)
        return f'<iframe srcdoc="{page}" width="100%" height="800" frameborder="0"></iframe>'


def report(*runs: Any) -> Page:
    """The report of one run, or of several side by side, the first of them the baseline.

    Args:
        runs: run directories, or runs.

    Raises:
        UserError: no run was given, or one is no directory.
    """
    paths = [os.fspath(run) for run in runs]
    missing = {path: load_run(path).missing for path in paths}
    return Page(report_from_runs(paths), missing)
