"""Which of several processes this is: one, or as `accelerate launch` started them."""

from __future__ import annotations

import os


def rank() -> int:
    """0 for the process that writes the results."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many processes share the work."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """Which of this machine's devices is this process's."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def barrier() -> None:
    """Wait until every process is here."""
    if world_size() <= 1:
        return
    import torch
    from accelerate import PartialState

    # without an accelerator the processes only meet where the CPU is asked for by name
    PartialState(cpu=not torch.cuda.is_available()).wait_for_everyone()
