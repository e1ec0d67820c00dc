"""What ties an effective batch together: moving averages and values gathered from all ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from trueline.errors import UserError


@dataclass
class MovingAverage:
    """A debiased exponential moving average of a scalar, optionally of its exponential.

    After values x_1..x_t with decay d: m_t = (1 - d) sum_k d^(t-k) x_k / (1 - d^t); in log space,
    ln of the same average of e^x, computed without leaving log space.

    Example:
        >>> average = MovingAverage(0.9)
        >>> average.update(2.0), round(average.update(4.0), 4)
        (2.0, 3.0526)
    """

    decay: float
    log_space: bool = False
    steps: int = 0
    total: float = 0.0

    @property
    def value(self) -> float | None:
        """The average so far, or None before the first value."""
        if not self.steps:
            return None
        weight = 1 - self.decay**self.steps
        return self.total - math.log(weight) if self.log_space else self.total / weight

    def update(self, x: float) -> float:
        """Take in one value and return the new average."""
        new = 1 - self.decay
        if not self.log_space:
            self.total = self.decay * self.total + new * x
        elif self.steps and self.decay:
            a, b = math.log(self.decay) + self.total, math.log(new) + x
            self.total = max(a, b) + math.log1p(math.exp(-abs(a - b)))
        else:
            self.total = math.log(new) + x
        self.steps += 1
        value = self.value
        assert value is not None
        return value

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint keeps."""
        return {"steps": self.steps, "total": self.total}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Take up where :meth:`state_dict` left off."""
        self.steps, self.total = int(state["steps"]), float(state["total"])


def world_size() -> int:
    """Processes taking part, 1 where nothing is distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process() -> int:
    """This process among them, 0 where nothing is distributed."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def gather(values: Tensor, sizes: Sequence[int] | None = None) -> tuple[Tensor, slice]:
    """All ranks' (n_r, k) float64 rows, rank by rank, and where this rank's rows are.

    Ranks that know all n_r beforehand say so in ``sizes`` and meet once; else they meet twice.
    """
    if world_size() == 1:
        return values, slice(0, len(values))
    counts = _sizes(values) if sizes is None else list(sizes)
    padded = values.new_zeros(max(counts), values.shape[1])
    padded[: len(values)] = values
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    start = sum(counts[: dist.get_rank()])
    whole = torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])
    return whole, slice(start, start + len(values))


def _sizes(values: Tensor) -> list[int]:
    sizes = [torch.zeros(1, dtype=torch.long, device=values.device) for _ in range(world_size())]
    dist.all_gather(sizes, torch.tensor([len(values)], device=values.device))
    return [int(size) for size in sizes]


def everyones(value: Any) -> list[Any]:
    """Each rank's value, on every rank."""
    values = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(values, value)
    return values


T = TypeVar("T")


def on_first_rank(function: Callable[[], T]) -> T:
    """What ``function`` returns on the first rank, on all of them; its UserError likewise, so that
    no rank waits for one that has stopped."""
    if world_size() == 1:
        return function()
    found: list[Any] = [None]
    if dist.get_rank() == 0:
        try:
            found = [function()]
        except UserError as error:
            found = [error]
    dist.broadcast_object_list(found)
    if isinstance(found[0], UserError):
        raise found[0]
    return cast(T, found[0])
