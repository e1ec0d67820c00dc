"""The application: one module a verb, and the conventions they share.

Results (tables, findings, lists) go to stdout, progress and remarks to stderr; ``--json`` prints
one JSON document on stdout; bad input is one line on stderr and exit code 2. Verb modules import
nothing heavy at the top, so that ``trueline --help`` answers at once.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import traceback
from typing import Annotated, Any

import typer

from trueline import interrupts, plugins, processes
from trueline.cli import (
    align,
    calibrate,
    compare,
    data,
    demo,
    diagnose,
    diffusion,
    evaluate,
    objectives,
    report,
    reproduce,
    runs,
)
from trueline.cli.common import CONTEXT, Telling
from trueline.errors import Unfinished, UserError, cause, printable

app = typer.Typer(
    name="trueline",
    help="Align language models to be safe and preferred, and show whether and why it worked.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(demo.demo)
app.command(cls=Telling, context_settings=CONTEXT)(align.align)
align.add_scripts(app)
app.command()(objectives.objectives)
app.add_typer(data.app, name="data")
app.add_typer(diagnose.app, name="diagnose")
app.command()(evaluate.evaluate)
app.command()(evaluate.judge)
app.command()(calibrate.calibrate_judge)
app.command()(compare.compare)
app.command()(report.report)
app.command()(runs.watch)
app.command()(reproduce.reproduce)
app.command()(runs.runs)
app.command()(evaluate.bound)
app.command()(evaluate.inspect_export)
app.add_typer(diffusion.app, name="diffusion")


def _version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        print(version("trueline"))
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Align language models to be safe and preferred, and show whether and why it worked."""


def _load_plugins() -> None:
    """Import what `--import` names, at any verb; evaluate also keeps it in its configuration."""
    imports, words = plugins.imports_of(sys.argv[1:])
    plugins.load(imports)
    if imports and "evaluate" not in words:
        sys.argv[1:] = words


def main() -> None:
    """The console entry point, and the one boundary of errors.

    Bad input, and whatever files, values and loading can raise, is one line and exit code 2; work
    that ended without something that it says is there, exit code 1; a signal ends with 128 and its
    number; anything else is a fault of ours: exit code 70, with the trace in a file to report.
    """
    interrupts.note_command(sys.argv[1:])
    for one in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(one) is not signal.SIG_IGN:  # as under nohup
            signal.signal(one, _end)
    try:
        started = processes.launched(sys.argv[1:])
        if started is not None:
            os.execv(started[0], started)
        _load_plugins()
        app()
    except (KeyboardInterrupt, SystemExit) as ended:
        interrupted = _interruption(ended)
        if interrupted is None:
            raise
        number = getattr(interrupted, "number", signal.SIGINT)
        _say(str(interrupted) or "interrupted")
        _say_how_to_go_on()
        sys.exit(128 + number)
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except MemoryError:
        _say("error: out of memory; take a smaller batch, model or max_length")
        sys.exit(2)
    except _refused() as error:
        _say(f"error: {error if isinstance(error, UserError) else cause(error)}")
        sys.exit(1 if isinstance(error, Unfinished) else 2)
    except Exception as error:
        _say(f"internal error: {type(error).__name__}: {cause(error)}")
        _say(f"this is a fault of Trueline's; please report it with {_trace()}")
        sys.exit(70)


def _say_how_to_go_on() -> None:
    """The command that goes on, from the first of several processes."""
    state = sys.modules.get("trueline.runs.state")
    line = interrupts.goes_on(bool(state and state.begun()))
    if line is not None and os.environ.get("RANK", "0") == "0":
        _say(f"go on with: {line}")


def _interruption(ended: BaseException) -> KeyboardInterrupt | None:
    """The interruption that ended the command, also where typer made an exit of it."""
    if isinstance(ended, KeyboardInterrupt):
        return ended
    cause = getattr(ended.__context__, "__cause__", None)
    return cause if isinstance(cause, KeyboardInterrupt) else None


class Ended(KeyboardInterrupt):
    """A signal asked this process to end while nothing was there that saves."""

    def __init__(self, number: int) -> None:
        super().__init__(f"ended by {signal.Signals(number).name}")
        self.number = number


def _end(number: int, frame: Any) -> None:
    raise Ended(number)


def _refused() -> tuple[type[Exception], ...]:
    """What bad input, files and their readers raise: of libraries, those that are loaded by now."""
    kinds = {
        "yaml": ("YAMLError",),
        "safetensors": ("SafetensorError",),
        "json": ("JSONDecodeError",),
        "zipfile": ("BadZipFile",),
        "pickle": ("UnpicklingError",),
        "pyarrow": ("ArrowInvalid",),
    }
    readers = tuple(
        getattr(sys.modules[module], name)
        for module, names in kinds.items()
        if module in sys.modules
        for name in names
    )
    return (UserError, OSError, UnicodeError, *readers)


def _say(line: str) -> None:
    print(printable(line), file=sys.stderr)


def _trace() -> str:
    """The file that the present exception's trace is written to."""
    handle, path = tempfile.mkstemp(prefix="trueline-error-", suffix=".txt")
    with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(f"{' '.join(sys.argv)}\n\n{traceback.format_exc()}")
    return path
