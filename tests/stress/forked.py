"""The command line, run in a child that is forked from a parent with everything imported.

A run of the tiny model then costs about a second, of which hardly any is start-up, and the child
may be killed at any point of writing (``faults``) without a word from Python.
"""

import contextlib
import io
import os
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

TRACE = 99


@dataclass(frozen=True)
class Ended:
    """How a child ended: its exit code, or minus the signal's number, and what it said."""

    code: int
    out: str
    err: str
    seconds: float

    @property
    def killed(self) -> bool:
        return self.code == -signal.SIGKILL

    @property
    def lines(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.strip()]

    @property
    def trace(self) -> bool:
        """Whether it ended in a traceback, or as a fault of Trueline's."""
        return self.code in (70, TRACE) or "Traceback" in self.err


def warm():
    """Import what the verbs import, before anything is forked."""
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")
    import torch

    torch.set_num_threads(1)
    import diffusers  # noqa: F401
    import sklearn.linear_model  # noqa: F401
    import statsmodels.api  # noqa: F401
    import transformers.models.llama.modeling_llama  # noqa: F401

    import trueline.cli
    import trueline.diffusion
    import trueline.reproduce.study
    import trueline.runs.align
    import trueline.runs.curate
    import trueline.runs.diffusion.evaluate
    import trueline.runs.evaluate
    import trueline.runs.listing
    import trueline.training

    trueline.reproduce.study.all_claims()
    "".encode("utf-8-sig")  # what another user, as whom a child runs, may not be able to import


@dataclass(frozen=True)
class Started:
    """A child at work."""

    pid: int
    said: tuple
    begun: float
    timeout: float

    def wait(self):
        """Until it has ended."""
        status = _wait(self.pid, self.begun + self.timeout)
        out, err = (path.read_text("utf-8", errors="replace") for path in self.said)
        for path in self.said:
            path.unlink()
        return Ended(os.waitstatus_to_exitcode(status), out, err, time.monotonic() - self.begun)


def start(words, cwd, *, before=None, timeout=1200, said="said"):
    """Begin ``trueline WORDS`` in a folder; ``before`` is called in the child, first of all."""
    files = tuple(Path(cwd) / f".{said}-{name}" for name in ("out", "err"))
    begun = time.monotonic()
    pid = os.fork()
    if pid == 0:
        os._exit(_child([str(word) for word in words], cwd, files, before))
    return Started(pid, files, begun, timeout)


def call(words, cwd, **how):
    """``trueline WORDS`` in a folder, to its end."""
    return start(words, cwd, **how).wait()


def _wait(pid, until):
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status
        if time.monotonic() > until:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise TimeoutError(f"process {pid} did not end")
        time.sleep(0.003)


def _child(words, cwd, said, before):
    code = TRACE
    try:
        os.chdir(cwd)
        for number, path in enumerate(said, 1):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        how = {"encoding": "utf-8", "errors": "backslashreplace", "line_buffering": True}
        sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), **how)
        sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), **how)
        sys.argv = ["trueline", *words]
        if before is not None:
            before()
        from trueline.cli import main

        main()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
    return code
