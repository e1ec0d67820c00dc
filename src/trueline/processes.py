"""Several processes: which of them this is, as a launcher says it (torchrun, `accelerate launch`),
and their start by an option: ``trueline align --num_processes 8 ...`` starts them itself.

How many have met in a process group is :func:`trueline.training.coupling.world_size`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from trueline.errors import UserError


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


def meet(value: int = 0) -> int:
    """Wait until every process is here; the largest value that one of them brings."""
    if started() <= 1:
        return value
    import torch
    from accelerate import PartialState
    from accelerate.utils import gather_object

    # without an accelerator the processes only meet where the CPU is asked for by name
    PartialState(cpu=not torch.cuda.is_available())
    return max(gather_object([value]))


def heard(value: int = 0) -> int:
    """What this process tells the others that it met, or one of them has told; 0 for nothing.
    Nobody waits for it."""
    torch = sys.modules.get("torch")
    if started() <= 1 or torch is None or not torch.distributed.is_initialized():
        return value
    board, key = _board(), f"told-{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"
    if value:
        board.set(key, str(value))
    return int(board.get(key)) if board.check([key]) else 0


@cache
def _board() -> Any:
    """The store by which the processes found each other."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return TCPStore(address, port, is_master=False, wait_for_workers=False)


OPTIONS = {
    "num_processes": "processes on this machine, started by this command",
    "num_machines": "machines that train together",
    "machine_rank": "which of them this is, from 0",
    "main_process_ip": "the first machine's address",
    "main_process_port": "and its port",
    "accelerate_config": "accelerate's file, or the name of one of ours (fsdp2, zero3, ...)",
}
"""What the launcher takes, as accelerate and TRL call it, and not the configuration."""
FOLDER = Path(__file__).parent / "accelerate_configs"
TORCH = {"num_machines": "nnodes", "machine_rank": "node_rank", "main_process_ip": "master_addr",
         "main_process_port": "master_port"}  # fmt: skip


def launched(arguments: Sequence[str]) -> list[str] | None:
    """The command that starts these arguments in several processes; None where one is meant.

    Without a file every process holds the whole model, and torch's launcher starts them; with one,
    accelerate's does.

    Raises:
        UserError: an option without a value or without effect, an unknown configuration.

    Example:
        >>> launched(["align", "--config", "a.yaml", "--num_processes", "2"])[1:]
        ... # doctest: +NORMALIZE_WHITESPACE
        ['-m', 'torch.distributed.run', '--nproc_per_node=2', '--standalone', '-m', 'trueline',
         'align', '--config', 'a.yaml']
    """
    given, rest = _split(arguments)
    if not given:
        return None
    if "WORLD_SIZE" in os.environ:
        raise UserError(
            f"--{next(iter(given))} starts processes, and a launcher has started this one already; "
            "leave it out"
        )
    machines, processes = _count(given, "num_machines"), _count(given, "num_processes")
    several = machines is not None and machines > 1
    for name, what in (
        ("machine_rank", "0 on the first machine, 1 on the next"),
        ("main_process_ip", "the first machine's address"),
    ):
        if several and name not in given:
            raise UserError(f"--num_machines {machines} needs --{name}: {what}")
        if not several and name in given:
            raise UserError(f"--{name} has no effect without --num_machines of 2 or more")
    start = [sys.executable, "-m"]
    if "accelerate_config" in given:
        file = _file(given.pop("accelerate_config"))
        told = [f"--{name}={value}" for name, value in given.items()]
        return [*start, "accelerate.commands.launch", f"--config_file={file}", *told,
                "-m", "trueline", *rest]  # fmt: skip
    if processes is None:
        raise UserError("--num_processes is missing: how many, over all machines")
    if machines is not None and processes % machines:
        raise UserError(f"{processes} processes do not spread evenly over {machines} machines")
    told = [f"--nproc_per_node={processes // (machines or 1)}"]
    told += [f"--{TORCH[name]}={value}" for name, value in given.items() if name in TORCH]
    if not several and "main_process_port" not in given:
        told.append("--standalone")
    return [*start, "torch.distributed.run", *told, "-m", "trueline", *rest]


def _split(arguments: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The launcher's options, by name, and all other arguments."""
    given: dict[str, str] = {}
    rest: list[str] = []
    values = iter(arguments)
    for argument in values:
        name, equals, value = argument.removeprefix("--").partition("=")
        name = name.replace("-", "_")
        if not argument.startswith("--") or name not in OPTIONS:
            rest.append(argument)
            continue
        value = value if equals else next(values, "")
        if not value or value.startswith("--"):
            raise UserError(f"--{name} needs a value")
        given[name] = value
    return given, rest


def _count(given: dict[str, str], name: str) -> int | None:
    if name not in given:
        return None
    if not given[name].isdigit() or int(given[name]) < 1:
        raise UserError(f"--{name} must be a number of 1 or more, got {given[name]!r}")
    return int(given[name])


def _file(name: str) -> Path:
    """An accelerate file, or one of those that come with Trueline, by its name."""
    known = {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}
    known |= {"multi_gpu": known["ddp"]}  # TRL's name for it
    if name in known:
        return known[name]
    if not Path(name).is_file():
        raise UserError(
            f"--accelerate_config {name!r} is neither a file nor one of {', '.join(known)}"
        )
    return Path(name)
