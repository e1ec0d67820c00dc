"""The one kind of error a user is meant to read: what was expected, what came, what to do."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """Bad input. The command line prints its message on one line and exits with 2."""


class Unfinished(UserError):
    """The work was done, and something that it ends with is not there; exit code 1."""


@contextmanager
def built_from_options() -> Iterator[None]:
    """Around what libraries build from a user's options: what they refuse is a :class:`UserError`.

    An error that is raised in Trueline's own code passes: it would be a fault of ours.
    """
    try:
        yield
    except UserError:
        raise
    except (ValueError, TypeError, LookupError, AttributeError, ImportError, RuntimeError) as error:
        if _home(error).startswith("trueline."):
            raise
        said = repr(error) if isinstance(error, LookupError) else cause(error)
        raise UserError(f"{_home(error).partition('.')[0]} takes no such option: {said}") from error


def _home(error: BaseException) -> str:
    """The module that an error was raised in."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else str(trace.tb_frame.f_globals.get("__name__", ""))


def printable(text: str) -> str:
    """One line that cannot command a terminal or turn its direction around: control and format
    characters, such as a file's name may hold, are written as escapes.

    Example:
        >>> print(printable("a\\x1b[2Jb\\n\\u202ec"))
        a\\x1b[2Jb\\n\\u202ec
    """
    return "".join(
        c.encode("unicode_escape").decode() if unicodedata.category(c) in _UNSAFE else c
        for c in text
    )


_UNSAFE = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def cause(error: BaseException) -> str:
    """Why a file, a value or a library's call failed, in one line: the place first."""
    if isinstance(error, OSError) and error.strerror:
        place = error.filename if error.filename is not None else error.filename2
        return f"{place}: {error.strerror}" if place is not None else error.strerror
    return " ".join(str(error).split()) or type(error).__name__
