"""Requests under way: which is due, what came of each, and a loop to run them in."""

from __future__ import annotations

import asyncio
import heapq
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from trueline.evaluation.backends.base import Request
from trueline.evaluation.generation import Generation, OnAnswer
from trueline.prompts import Progress

PAUSE, LONGEST = 0.5, 30.0
"""Seconds before a second attempt, doubled before each further one, and at most."""


class Told:
    """The answers so far, each passed on as it comes."""

    def __init__(
        self, requests: Sequence[Request], on_answer: OnAnswer | None, progress: Progress | None
    ) -> None:
        self.requests = requests
        self._on_answer, self._progress = on_answer, progress
        self._found: dict[int, Generation] = {}
        self.reasons: Counter[str] = Counter()
        self.good = self.failed = 0

    def __call__(self, index: int, answer: Generation) -> None:
        self._found[index] = answer
        self.good += not answer.failed
        self.failed += bool(answer.failed)
        if answer.failed:
            self.reasons[answer.failed] += 1
        if self._on_answer is not None:
            self._on_answer(index, answer)
        if self._progress is not None:
            self._progress(len(self._found), len(self.requests))

    @property
    def answers(self) -> list[Generation]:
        """In the requests' order."""
        return [self._found[index] for index in range(len(self.requests))]


class Queue:
    """Requests that are due: fresh ones at once, failed ones after their pause."""

    def __init__(self, count: int) -> None:
        self._fresh = iter(range(count))
        self._later: list[tuple[float, int, int]] = []
        self._left = count

    async def take(self) -> tuple[int, int] | None:
        """The next request and how often it has failed; None where all are done."""
        while self._left:
            now = time.monotonic()
            if self._later and self._later[0][0] <= now:
                _, index, attempt = heapq.heappop(self._later)
                return index, attempt
            index = next(self._fresh, -1)
            if index >= 0:
                return index, 0
            wait = self._later[0][0] - now if self._later else 0.05
            await asyncio.sleep(min(wait, 0.05))
        return None

    def again(self, index: int, attempt: int, wait: float) -> None:
        """Ask once more, after a pause of ``wait`` seconds at least."""
        pause = max(wait, min(PAUSE * 2 ** (attempt - 1), LONGEST))
        heapq.heappush(self._later, (time.monotonic() + pause, index, attempt))

    def done(self) -> None:
        """One request needs no further attempt."""
        self._left -= 1


def run(work: Callable[[], Any]) -> None:
    """To the end, also where a loop runs already (a notebook); the first error alone."""
    errors: list[BaseException] = []

    def whole() -> None:
        try:
            asyncio.run(work())
        except BaseExceptionGroup as group:
            errors.append(_first(group))

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        whole()
    else:
        thread = threading.Thread(target=whole)
        thread.start()
        thread.join()
    if errors:
        raise errors[0]


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
