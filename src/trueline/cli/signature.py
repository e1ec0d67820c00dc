"""Commands made from signatures: a plug-in's options become options of the command line.

They are made when they are asked for: `--help` of the whole command line imports nothing for them.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from trueline.options import resolved

Parameters = Mapping[str, tuple[Any, Any]]
"""Names to (annotation, default) as typer reads them; ``...`` for no default."""


def command(
    run: Callable[..., None],
    function: Callable[..., Any],
    before: Parameters,
    after: Parameters,
    between: Parameters = MappingProxyType({}),
) -> Callable[..., None]:
    """A function for typer that calls ``run`` with everything that was given.

    Args:
        run: takes all parameters by name.
        function: whose keyword-only arguments and docstring the command has.
        before, between, after: what else it takes: before, behind its main argument, at the end.
    """
    own = options(function)
    every = {
        **before,
        **mains(function),
        **between,
        **own,
        **{name: one for name, one in after.items() if name not in own},
    }
    empty = inspect.Parameter.empty
    parameters = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=empty if default is ... else default,
            annotation=annotation,
        )
        for name, (annotation, default) in every.items()
    ]

    def called(**given: Any) -> None:
        run(**given)

    called.__doc__ = inspect.getdoc(function)
    called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    called.__annotations__ = {name: annotation for name, (annotation, _) in every.items()}
    return called


def mains(function: Callable[..., Any]) -> dict[str, tuple[Any, Any]]:
    """What a function takes behind its first parameter and before the ``*``, as arguments."""
    hints = resolved(function)
    rest = list(inspect.signature(function).parameters.values())[1:]
    return {
        p.name: (
            Annotated[_bare(hints[p.name]), typer.Argument(help=_help(hints[p.name]))],
            ... if p.default is p.empty else p.default,
        )
        for p in rest
        if p.kind is not p.KEYWORD_ONLY
    }


def options(function: Callable[..., Any]) -> dict[str, tuple[Any, Any]]:
    """A function's keyword-only arguments as typer's options."""
    hints = resolved(function)
    found = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is not parameter.KEYWORD_ONLY:
            continue
        required = parameter.default is parameter.empty
        hint = hints.get(name, str)
        told = _help(hint)
        flag = [f"--{name.replace('_', '-')}"] if parameter.default is False else []
        found[name] = (
            Annotated[_bare(hint), typer.Option(*flag, help=told)],
            ... if required else parameter.default,
        )
    return found


def _help(hint: Any) -> str:
    """The line of help that stands in an annotation, however deep."""
    if typing.get_origin(hint) is Annotated:
        kind, *extras = typing.get_args(hint)
        told = [extra for extra in extras if isinstance(extra, str)]
        return told[0] if told else _help(kind)
    return next((text for part in typing.get_args(hint) if (text := _help(part))), "")


def _bare(hint: Any) -> Any:
    """The type without what ``Annotated`` says of it."""
    if typing.get_origin(hint) is Annotated:
        return _bare(typing.get_args(hint)[0])
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return typing.Union[tuple(map(_bare, typing.get_args(hint)))]  # noqa: UP007
    return hint


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
