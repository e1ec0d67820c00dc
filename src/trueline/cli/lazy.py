"""A group whose further commands are made when they are asked for: `--help` of the whole command
line imports nothing heavy for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperGroup


def Late(commands: Callable[[], dict[str, Any]]) -> type[TyperGroup]:
    """A group that has, beside its own, the commands that ``commands`` makes."""

    class Group(TyperGroup):
        _own: dict[str, Any]
        _late: dict[str, Any] | None = None

        @property  # type: ignore[override]
        def commands(self) -> dict[str, Any]:
            """Its own, then the made ones."""
            if self._late is None:
                self._late = {name: _click(name, made) for name, made in commands().items()}
            return {**self._own, **self._late}

        @commands.setter
        def commands(self, value: dict[str, Any]) -> None:
            self._own = dict(value)

    return Group


def _click(name: str, function: Callable[..., None]) -> Any:
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command(name)(function)
    made = typer.main.get_command(app)
    made.name = name
    return made
