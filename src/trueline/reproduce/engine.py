"""Doing the runs: each once, kept when done, several at a time, within a budget.

A run works in a folder of its own process, which becomes the folder named by its key once its
``result.json`` is written. So what has that name is whole, a kill leaves nothing that looks done,
and a process that outlived its command cannot disturb the next one.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import shutil
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from trueline.files import write_json
from trueline.interrupts import Interrupted, Signals
from trueline.reproduce.runs import EXPERIMENTS, Run, Values
from trueline.reproduce.workers import Workers

Tell: TypeAlias = Callable[[str], None]
RESULT = "result.json"
EXPERIMENTS_IN = "trueline.reproduce.experiments"


@dataclass
class Done:
    """What came of the runs.

    Args:
        values: key to what was measured.
        seconds: key to processor seconds, kept runs among them.
        failed: key to one line that says why.
        left: runs that were not begun, for want of budget.
        kept: how many were there already.
    """

    values: dict[str, Values] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    left: list[Run] = field(default_factory=list)
    kept: int = 0


def perform(
    runs: Sequence[Run],
    folder: Path,
    *,
    jobs: int = 1,
    budget: float | None = None,
    tell: Tell = lambda line: None,
) -> Done:
    """Do the runs that are not there yet.

    A run that fails is told and noted; those that need it fail with it, and the others go on.

    Args:
        runs: each after those it needs.
        folder: where they are kept.
        jobs: processes, with one thread each; 0 does everything in this process.
        budget: seconds after which no further run is begun; None for no limit.
        tell: called with a line of progress.

    Raises:
        Interrupted: a signal came; the runs that were at work then are done and kept.
    """
    done, begin = Done(), time.monotonic()
    _sweep(folder)
    waiting = _read_kept(runs, folder, done)
    if done.kept:
        tell(f"{done.kept} of {len(runs)} runs are there already")
    total = len(waiting)
    with Signals("the runs that are at work") as signals, Workers(jobs, EXPERIMENTS_IN) as workers:
        running: dict[Future[dict[str, Any]], Run] = {}
        while waiting or running:
            if budget is not None and time.monotonic() - begin >= budget:
                done.left, waiting = [*done.left, *waiting], []
            if signals.caught is not None:
                done.left, waiting = [*done.left, *waiting], []
            for run in _ready(waiting, done)[: max(jobs, 1) - len(running)]:
                waiting.remove(run)
                running[workers.submit(do, run, folder)] = run
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                run = running.pop(future)
                count = total - len(waiting) - len(running) - len(done.left)
                tell(f"[{count}/{total}] {_name(run)}: {_settle(done, run, future, workers)}")
            waiting = _without_orphans(waiting, done, tell)
        if signals.caught is not None:
            raise Interrupted(signals.caught)
    return done


def _name(run: Run) -> str:
    return f"{run.experiment}: {run.title}, seed {run.seed}"


def _settle(done: Done, run: Run, future: Future[dict[str, Any]], workers: Workers) -> str:
    """Notes what came of a run; returns it in words."""
    try:
        result = future.result()
    except BrokenProcessPool:
        workers.renew()
        done.failed[run.key] = "a process died (out of memory, or killed)"
    except Exception as error:
        done.failed[run.key] = f"{type(error).__name__}: {error}"
    else:
        _take(done, run, result)
        return f"{result['wall']:.0f} s"
    return f"FAILED: {done.failed[run.key]}"


def _read_kept(runs: Sequence[Run], folder: Path, done: Done) -> list[Run]:
    """Takes what is there; returns the rest."""
    waiting = []
    for run in runs:
        path = folder / run.key / RESULT
        try:
            _take(done, run, json.loads(path.read_text("utf-8")))
            done.kept += 1
        except FileNotFoundError:
            waiting.append(run)
        except (ValueError, KeyError, TypeError):  # damaged: done again
            shutil.rmtree(path.parent)
            waiting.append(run)
    return waiting


def _sweep(folder: Path) -> None:
    """Removes what killed processes left half done."""
    for path in folder.glob(".*.part-*"):
        try:
            os.kill(int(path.name.rpartition("-")[2]), 0)
        except ProcessLookupError:
            shutil.rmtree(path, ignore_errors=True)
        except PermissionError:  # alive, and another user's
            continue


def _take(done: Done, run: Run, result: dict[str, Any]) -> None:
    done.values[run.key] = result["values"]
    done.seconds[run.key] = result["seconds"]


def _ready(waiting: Iterable[Run], done: Done) -> list[Run]:
    return [run for run in waiting if all(p.key in done.values for p in run.needs)]


def _without_orphans(waiting: list[Run], done: Done, tell: Tell) -> list[Run]:
    """Drops the runs that need one that failed."""
    kept = []
    for run in waiting:
        lost = [parent for parent in run.needs if parent.key in done.failed]
        if lost:
            done.failed[run.key] = f"it needs {lost[0].experiment}, which failed"
            tell(f"{_name(run)}: {done.failed[run.key]}")
        else:
            kept.append(run)
    return kept


def do(run: Run, folder: Path) -> dict[str, Any]:
    """One run, in a folder of its own; returns what ``result.json`` holds."""
    import torch

    own = folder / f".{run.key}.part-{os.getpid()}"
    own.mkdir(parents=True)
    gc.collect()  # the models of the run before hang in their trainers' cycles
    torch.manual_seed(run.seed)
    begin, used = time.monotonic(), time.process_time()
    try:
        values = EXPERIMENTS[run.experiment].function(
            run, own, [folder / parent.key for parent in run.needs]
        )
    except Exception:
        (folder / f"{run.key}.error.txt").write_text(traceback.format_exc(), "utf-8")
        shutil.rmtree(own, ignore_errors=True)
        raise
    result = {
        "experiment": run.experiment,
        "title": run.title,
        "version": EXPERIMENTS[run.experiment].version,
        "options": dict(run.options),
        "seed": run.seed,
        "made": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "values": dict(values),
        "seconds": round(time.process_time() - used, 2),
        "wall": round(time.monotonic() - begin, 2),
    }
    write_json(own / RESULT, result)
    with contextlib.suppress(OSError):  # there already: another process was faster
        own.rename(folder / run.key)
    shutil.rmtree(own, ignore_errors=True)
    return result
