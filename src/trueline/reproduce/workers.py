"""Processes that share work: fresh ones, of one thread each, that never outlive their parent."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import ParamSpec, TypeVar

from trueline.errors import UserError
from trueline.reproduce.runs import load_all

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
Given = ParamSpec("Given")
Made = TypeVar("Made")


class Workers:
    """A pool of fresh processes, or this one.

    Left by an error or an interruption, it ends its processes at once.

    Args:
        jobs: how many; 0 does everything in this process.
        package: all of whose modules each of them imports first, if any.
    """

    def __init__(self, jobs: int, package: str | None = None) -> None:
        self.jobs, self.package = jobs, package
        self.pool: Executor | None = None

    def __enter__(self) -> Workers:
        self.renew()
        return self

    def renew(self) -> None:
        """Another pool, as after a process died."""
        if self.pool is not None:
            self.pool.shutdown(wait=False, cancel_futures=True)
        if self.jobs:
            context = multiprocessing.get_context("spawn")
            self.pool = ProcessPoolExecutor(self.jobs, context, _begin, (self.package,))

    def submit(
        self, function: Callable[Given, Made], *args: Given.args, **options: Given.kwargs
    ) -> Future[Made]:
        """Have a function called; what it raises is raised by the future's ``result``."""
        if self.pool is not None:
            return self.pool.submit(function, *args, **options)
        future: Future[Made] = Future()
        try:
            future.set_result(function(*args, **options))
        except Exception as error:
            future.set_exception(error)
        return future

    def results(self, futures: Sequence[Future[Made]]) -> list[Made]:
        """What the functions gave, in order; the first that fails ends the waiting.

        Raises:
            UserError: a process died.
        """
        try:
            for future in as_completed(futures):
                future.result()
        except BrokenProcessPool:
            raise UserError(
                "a process died (out of memory, or killed); try again with --jobs 0"
            ) from None
        return [future.result() for future in futures]

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.pool is None:
            return
        if kind is not None:  # interrupted: what runs now would be done again anyway
            for process in list(getattr(self.pool, "_processes", {}).values()):
                process.kill()
        self.pool.shutdown(wait=kind is None, cancel_futures=True)


def _begin(package: str | None) -> None:
    """A worker's first act. The models are tiny: a second thread waits more than it works."""
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    for number in (signal.SIGINT, signal.SIGHUP):  # a terminal's go to all; the parent decides
        signal.signal(number, signal.SIG_IGN)
    os.environ.update(dict.fromkeys(THREADS, "1"))
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    if package is not None:
        load_all(package)


def _leave_with_parent() -> None:
    """A killed parent cannot stop its workers; a run of theirs would be done twice."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
