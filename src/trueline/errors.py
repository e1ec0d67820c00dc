"""The one kind of error a user is meant to read: what was expected, what came, what to do."""

from __future__ import annotations

import unicodedata


class UserError(ValueError):
    """Bad input. The command line prints its message on one line and exits with 2."""


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
