"""Benchmarks, attacks, judges and utility measures by name, and how a name takes its options.

Each is one decorated function: its first parameter, if it has one before the ``*``, is its main
argument (a file, a model), its keyword-only parameters are options with types. A name with
options is written in one line, on the command line and in YAML alike:

    table=requests.csv,harmful=unsafe,label=mine
    gcg,steps=50,candidates=128
    llm=my-model,base_url=http://localhost:8000/v1

or, in YAML, as a mapping ``{name: gcg, steps: 50}``. A backslash keeps a comma (or the ``+`` that
joins attacks) inside a value: ``prefill=Sure\\, here is``.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from trueline.errors import UserError
from trueline.options import arguments
from trueline.registry import Registry

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Spec:
    """A name and the options given with it.

    Args:
        name: of the registered function.
        main: its main argument, the part behind ``name=``; None where none was given.
        options: its options, as text or as YAML values.
        label: how it is called in logs and tables.
    """

    name: str
    main: Any = None
    options: Mapping[str, Any] = field(default_factory=dict)
    label: str = ""

    def __post_init__(self) -> None:
        if not self.label:
            object.__setattr__(self, "label", self.name)


def parse_spec(value: str | Mapping[str, Any]) -> Spec:
    """Read ``name[=main][,key=value]...``, or a mapping with ``name``.

    ``label`` renames it in logs and tables; two judges of one kind need two labels.

    Raises:
        UserError: no name, or a part that is no ``key=value``.

    Example:
        >>> parse_spec("advbench=goals.csv,limit=5")
        Spec(name='advbench', main='goals.csv', options={'limit': '5'}, label='advbench')
    """
    if isinstance(value, Mapping):
        given = dict(value)
        name = given.pop("name", None)
        if not isinstance(name, str) or not name:
            raise UserError(f"expected a mapping with 'name', got {dict(value)!r}")
        return Spec(name, given.pop("main", None), given, str(given.pop("label", "")))
    head, *rest = split_unless_escaped(str(value), ",")
    name, _, main = head.strip().partition("=")
    if not name:
        raise UserError(f"expected name[=main][,key=value]..., got {value!r}")
    options: dict[str, Any] = {}
    for part in rest:
        key, separator, text = part.strip().partition("=")
        if not separator or not key:
            raise UserError(f"{value!r}: {part!r} is not key=value")
        options[key.replace("-", "_")] = text
    return Spec(name, main or None, options, options.pop("label", ""))


def split_unless_escaped(text: str, separator: str) -> list[str]:
    """Parts between separators, except those that a backslash stands before.

    Example:
        >>> split_unless_escaped("a,b\\\\,c", ",")
        ['a', 'b,c']
    """
    parts = re.split(rf"(?<!\\){re.escape(separator)}", text)
    return [part.replace(f"\\{separator}", separator) for part in parts]


@dataclass(frozen=True)
class Plugin(Generic[T]):
    """A registered function: what it makes, and what its options are."""

    kind: str
    name: str
    make: Callable[..., T]

    @property
    def summary(self) -> str:
        """The first paragraph of its docstring, in one line."""
        return " ".join((inspect.getdoc(self.make) or "").split("\n\n", 1)[0].split())

    def __call__(self, main: Any = None, **options: Any) -> T:
        """Call it with options checked by its signature.

        Raises:
            UserError: an unknown option, one of the wrong type, or a missing one.
        """
        return self.make(**arguments(f"{self.kind} {self.name!r}", self.make, main, options))

    def of(self, spec: Spec) -> T:
        """Call it with the main argument and the options of ``spec``."""
        return self(spec.main, **spec.options)


def register(registry: Registry[Plugin[T]], name: str, *aliases: str) -> Callable[[F], F]:
    """The decorator that puts a function into ``registry``; the function stays as it is."""

    def add(function: F) -> F:
        registry.add(name, Plugin(registry.kind, name, function), aliases)
        return function

    return add
