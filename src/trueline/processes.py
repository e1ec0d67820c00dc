"""Which of several processes this is, as a launcher says it: torchrun, or `accelerate launch`.

How many have met in a process group is :func:`trueline.training.coupling.world_size`.
"""

from __future__ import annotations

import os


def rank() -> int:
    """0 for the process that writes the results."""
    return int(os.environ.get("RANK", "0"))


def is_first() -> bool:
    """Whether this process is the only one, or the first of several."""
    return rank() == 0


def started() -> int:
    """How many processes a launcher started to share the work; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """Which of this machine's devices is this process's."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def barrier() -> None:
    """Wait until every process is here."""
    if started() <= 1:
        return
    import torch
    from accelerate import PartialState

    # without an accelerator the processes only meet where the CPU is asked for by name
    PartialState(cpu=not torch.cuda.is_available()).wait_for_everyone()
