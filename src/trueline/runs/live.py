"""What `trueline watch` does: a training as one HTML file, written anew while it goes on."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trueline.errors import UserError
from trueline.report import live_report, render_report
from trueline.runs.record import METRICS, Run
from trueline.runs.state import State, status
from trueline.terminal import say

PAGE = "live.html"


def watch(
    run: str | os.PathLike[str] | Run,
    *,
    out: str | os.PathLike[str] | None = None,
    every: float = 10.0,
    once: bool = False,
    quiet: bool = False,
) -> Path:
    """Write a training's page, and again whenever its log has grown, until the training has ended.

    The page shows the curves (chosen and rejected apart, and gradient entanglement where it is
    measured) and says in words what is wrong; open in a browser, it loads itself anew.

    Args:
        run: the run directory; it need not have logged anything yet.
        out: where to; ``live.html`` in the run unless given.
        every: seconds between two looks at the log.
        once: write the page as it is now, and return.
        quiet: say nothing on the way.

    Returns:
        The page.

    Raises:
        UserError: there is no such directory, or ``every`` is not positive.
    """
    if every <= 0:
        raise UserError(f"every must be a positive number of seconds, got {every}")
    folder = Run.open(run, "the folder that a training writes").path
    page = Path(out) if out is not None else folder / PAGE
    before: Any = None
    while True:
        now = Run(folder)
        state, mark = _state(now), _mark(now)
        if (state, mark) != before:
            before = (state, mark)
            report = live_report(
                now.name,
                now.rows,
                total=_total(now.config, now.rows),
                state=state,
                subtitle=_subtitle(now.config),
                refresh=0 if once or state != "running" else max(1, round(every)),
            )
            render_report(report, page)
            say(f"{report.title}: {report.summary}", quiet=quiet)
        if once or state != "running":
            return page
        time.sleep(every)


def _mark(run: Run) -> Any:
    """What changes when the log grows."""
    try:
        found = (run.path / METRICS).stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def _state(run: Run) -> str:
    """``"running"``, ``"finished"``, or that it was broken off and why.

    A run of an earlier release keeps no state: it has ended when it told how long it took, and kept
    what it learned.
    """
    told = status(run)
    if told is None:
        ended = any("train_runtime" in row for row in run.rows[-5:])
        return "finished" if ended and run.holds_model else "running"
    if told.state is State.BROKEN_OFF:
        return f"broken off ({told.why})"
    return "finished" if told.state is State.FINISHED else "running"


def _total(config: Mapping[str, Any], rows: Any) -> int | None:
    """The steps it is to make: as it was told, or by how far the epochs are."""
    most = config.get("max_steps")
    if isinstance(most, int) and most > 0:
        return most
    epochs = config.get("num_train_epochs", 3)
    for row in reversed(rows):
        if row.get("epoch") and row.get("step") and isinstance(epochs, int | float):
            return round(row["step"] / row["epoch"] * epochs)
    return None


def _subtitle(config: Mapping[str, Any]) -> str:
    known = (config.get(k) for k in ("model_name_or_path", "loss_type", "dataset_name"))
    return " · ".join(", ".join(map(str, v)) if isinstance(v, list) else str(v) for v in known if v)
