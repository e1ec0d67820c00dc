"""Plug-ins: decorated functions in other people's files, found at every verb.

An objective, attack, judge, benchmark, utility measure, diagnostic question, curation step, drawing
or claim is one decorated function; importing its file registers it. `--import my_file.py` (or
``my_package.module``) at any verb imports it, as does :func:`load` in Python; an installed package
names its modules in the entry points of the group ``trueline.plugins`` and needs no word at all.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from types import ModuleType

from trueline.errors import UserError

GROUP = "trueline.plugins"
_FILES: dict[Path, ModuleType] = {}


def load(names: Iterable[str] = ()) -> None:
    """Import plug-ins: those of installed packages, and files or modules by name, each once.

    Raises:
        UserError: one is not there, or cannot be imported; the message says why.
    """
    _installed()
    for name in names:
        try:
            if name.endswith(".py"):
                _file(Path(name).resolve())
            else:
                importlib.import_module(name)
        except ImportError as error:
            raise UserError(
                f"--import {name} failed: {error}; is its folder on PYTHONPATH?"
            ) from None


def _file(path: Path) -> None:
    if path in _FILES:
        return
    if not path.is_file():
        raise UserError(f"--import {path}: there is no such file")
    name = f"trueline_plugin_{path.stem}_{len(_FILES)}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # annotations are resolved there
    _FILES[path] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name], _FILES[path]
        raise


@functools.cache
def _installed() -> None:
    for entry in metadata.entry_points(group=GROUP):
        try:
            entry.load()
        except Exception as error:
            raise UserError(
                f"the plug-in {entry.name!r} ({entry.value}) cannot be loaded: {error}; mend or "
                "uninstall its package"
            ) from None


def imports_of(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """What `--import` names in a command line, and the words without it.

    Example:
        >>> imports_of(["diagnose", "mine", "--import", "mine.py", "--model=m"])
        (['mine.py'], ['diagnose', 'mine', '--model=m'])
    """
    found: list[str] = []
    rest: list[str] = []
    words = list(words)
    while words:
        word = words.pop(0)
        if word == "--import" and words:
            found.append(words.pop(0))
        elif word.startswith("--import="):
            found.append(word.partition("=")[2])
        else:
            rest.append(word)
    return found, rest
