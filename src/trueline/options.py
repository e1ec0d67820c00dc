"""One law: a function's signature is its options.

A keyword-only argument is an option. Its annotation says its type (float, int, bool, str, a
``Literal``, or one of these or None) and, through ``Annotated``, its range and a line of help. The
configuration, the command line, the help, the documentation and the errors of objectives, attacks,
judges, benchmarks, diagnostic questions, curation steps and claims all follow from it:

    def dpo(pairs: PairedLogProbs, *, beta: Positive = 0.1) -> Tensor: ...
"""

from __future__ import annotations

import functools
import inspect
import math
import typing
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Protocol, TypeAlias, TypeVar

from trueline.errors import UserError
from trueline.registry import nearest

Made = TypeVar("Made", bound=Callable[..., Any])


class Constraint(Protocol):
    """A bound on an option beyond its type; ``str()`` of it is its wording."""

    def __contains__(self, value: Any) -> bool: ...


@dataclass(frozen=True)
class Range:
    """Numbers between ``low`` and ``high``; ``open`` says which ends are left out.

    Example:
        >>> 0.5 in Range(0, 0.5), str(Range(0, 0.5)), str(Range(0, open="low"))
        (False, 'in [0, 0.5)', '> 0')
    """

    low: float
    high: float = math.inf
    open: Literal["low", "high", "both", "neither"] = "high"

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.open in ("low", "both") else value >= self.low
        below = value < self.high if self.open in ("high", "both") else value <= self.high
        return above and below

    def __str__(self) -> str:
        left, right = self.open in ("low", "both"), self.open in ("high", "both")
        if self.high == math.inf:
            return f"{'>' if left else '>='} {self.low:g}"
        return f"in {'(' if left else '['}{self.low:g}, {self.high:g}{')' if right else ']'}"


@dataclass(frozen=True)
class NameIn:
    """A name registered somewhere, such as a divergence."""

    registry: Collection[str]

    def __contains__(self, value: str) -> bool:
        return value in self.registry

    def __str__(self) -> str:
        return f"one of {', '.join(sorted(self.registry))}"


Positive: TypeAlias = Annotated[float, Range(0, open="low")]
NonNegative: TypeAlias = Annotated[float, Range(0)]
Smoothing: TypeAlias = Annotated[float, Range(0, 0.5)]
Reduction: TypeAlias = Literal["sum", "mean"]


@dataclass(frozen=True)
class Option:
    """One option: its default, its type, and what bounds it."""

    name: str
    default: Any
    kinds: tuple[Any, ...] = ()
    choices: tuple[Any, ...] = ()
    constraint: Constraint | None = None
    help: str = ""

    @property
    def wording(self) -> str:
        """What it may be, in words, for errors and the documentation."""
        if self.choices:
            text = " or ".join(repr(choice) for choice in self.choices)
        else:
            names = {float: "a number", int: "a whole number", bool: "true or false", str: "a name"}
            text = names.get(self.kinds[0], self.kinds[0].__name__) if self.kinds else "anything"
        if self.constraint is not None:
            text = f"{text} {self.constraint}" if self.kinds[0] is not str else str(self.constraint)
        return f"{text}, or none" if NoneType in self.kinds else text

    def check(self, value: Any, objective: str) -> Any:
        """The value, whole numbers turned into floats where a float is meant.

        Raises:
            UserError: it has another type, is none of the choices, or is out of range.
        """
        if value is None and NoneType in self.kinds:
            return None
        if self.choices:
            valid = value in self.choices
        else:
            valid = not self.kinds or any(_is(value, kind) for kind in self.kinds)
        if valid and self.constraint is not None:
            valid = value in self.constraint
        if not valid:
            hint = nearest(value, map(str, self._names())) if isinstance(value, str) else ""
            raise UserError(
                f"option {self.name!r} of objective {objective!r} must be {self.wording}; "
                f"got {value!r}{hint}{_yaml_hint(value, self.kinds)}"
            )
        return float(value) if float in self.kinds and isinstance(value, int) else value

    def _names(self) -> Iterable[Any]:
        return self.constraint.registry if isinstance(self.constraint, NameIn) else self.choices


def _is(value: Any, kind: Any) -> bool:
    if kind in (float, int):
        number = (int, float) if kind is float else int
        return isinstance(value, number) and not isinstance(value, bool) and math.isfinite(value)
    return not isinstance(kind, type) or isinstance(value, kind)


def _yaml_hint(value: Any, kinds: tuple[Any, ...]) -> str:
    """YAML reads 1e-3 as text, which surprises everyone once."""
    if isinstance(value, str) and float in kinds:
        try:
            return f" as text; in YAML write {float(value)}"
        except ValueError:
            return ""
    return ""


def options_of(function: Callable[..., Any], skip: Iterable[str] = ()) -> dict[str, Option]:
    """The options of an objective's function, from its signature.

    Args:
        function: its first parameter is the batch, its options are keyword-only with defaults.
        skip: keywords that are no options, such as a statistic's argument.

    Raises:
        TypeError: a parameter that could be neither the batch nor an option.
    """
    name = getattr(function, "__name__", "objective")
    parameters = list(inspect.signature(function).parameters.values())
    if not parameters or parameters[0].kind is inspect.Parameter.KEYWORD_ONLY:
        raise TypeError(f"{name}: the first parameter must be the batch of log-probs")
    for parameter in parameters[1:]:
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
            raise TypeError(
                f"{name}: parameter {parameter.name!r} must be keyword-only with a default; put a "
                f"bare * after {parameters[0].name!r}"
            )
        if parameter.default is inspect.Parameter.empty and parameter.name not in skip:
            raise TypeError(f"{name}: option {parameter.name!r} needs a default")
    hints = resolved(function)
    return {
        p.name: _option(p.name, p.default, hints.get(p.name))
        for p in parameters[1:]
        if p.name not in skip
    }


def resolved(function: Callable[..., Any]) -> Mapping[str, Any]:
    """Its resolved annotations; what cannot be resolved stays as it is written."""
    try:
        return typing.get_type_hints(function, include_extras=True)
    except (NameError, TypeError):
        return getattr(function, "__annotations__", {})


def opening(function: Made) -> Made:
    """A function some of whose keyword-only arguments are opened by other functions.

    An argument that is annotated with a function has that one's keyword-only arguments for options
    in its place; it is called with what was given of them, and what it returns is the argument. So
    an option list that several plug-ins share is written once. An option that two of them have is
    given to both.

    Example:
        >>> def labels(*, by: str = "given", limit: int = 6) -> str:
        ...     return f"{by} from {limit}"
        >>> def build(rows: list, *, who: Annotated[str, labels], near: float = 0.8) -> str:
        ...     return f"{len(rows)} rows by {who}, {near}"
        >>> list(inspect.signature(opening(build)).parameters)
        ['rows', 'by', 'limit', 'near']
        >>> opening(build)([1, 2], by="keywords")
        '2 rows by keywords from 6, 0.8'
    """
    hints = resolved(function)
    openers = {name: found for name, hint in hints.items() if (found := _opener(hint))}
    if not openers:
        return function
    own = inspect.signature(function).parameters
    every: dict[str, inspect.Parameter] = {}
    annotations: dict[str, Any] = {}
    for name, parameter in own.items():
        opener = openers.get(name)
        more = {name: parameter} if opener is None else inspect.signature(opener).parameters
        every |= {key: one for key, one in more.items() if key not in every}
        told = hints if opener is None else resolved(opener)
        annotations |= {key: told[key] for key in more if key in told}

    @functools.wraps(function)
    def called(*main: Any, **given: Any) -> Any:
        made = {key: value for key, value in given.items() if key in own}
        for name, opener in openers.items():
            wanted = inspect.signature(opener).parameters
            made[name] = opener(**{key: given[key] for key in wanted if key in given})
        return function(*main, **made)

    called.__signature__ = inspect.Signature(list(every.values()))  # type: ignore[attr-defined]
    called.__annotations__ = annotations
    return called  # type: ignore[return-value]


def _opener(hint: Any) -> Callable[..., Any] | None:
    extras = typing.get_args(hint)[1:] if typing.get_origin(hint) is Annotated else ()
    return next((extra for extra in extras if inspect.isfunction(extra)), None)


def _option(name: str, default: Any, hint: Any) -> Option:
    constraint: Constraint | None = None
    told = ""
    kinds: list[Any] = []
    choices: list[Any] = []
    pending = [hint]
    while pending:
        part = pending.pop(0)
        origin = typing.get_origin(part)
        if origin is Annotated:
            part, *extras = typing.get_args(part)
            told = next((extra for extra in extras if isinstance(extra, str)), told)
            bounds = [extra for extra in extras if not isinstance(extra, str)]
            constraint = bounds[0] if bounds else constraint
            pending.insert(0, part)
        elif origin in (typing.Union, UnionType):
            pending.extend(typing.get_args(part))
        elif origin is Literal:
            choices.extend(typing.get_args(part))
        elif isinstance(part, type):
            kinds.append(part)
    return Option(name, default, tuple(kinds), tuple(choices), constraint, told)


def arguments(
    what: str, function: Callable[..., Any], main: Any, given: Mapping[str, Any], *, skip: int = 0
) -> dict[str, Any]:
    """What to call a plug-in's function with: its main argument and its options, typed.

    Args:
        what: whose options they are, for errors: ``attack 'gcg'``.
        function: its first parameter, if it has one before the ``*``, is its main argument.
        main: the main argument, or None where none was given.
        given: options by name, as text or as YAML values.
        skip: its first parameters, which are filled by who calls it.

    Raises:
        UserError: an unknown option, one of the wrong type, or a missing one.

    Example:
        >>> def mine(path: str, *, steps: int = 5): ...
        >>> arguments("attack 'mine'", mine, "a.csv", {"steps": "7"})
        {'steps': 7, 'path': 'a.csv'}
    """
    every = inspect.signature(function).parameters
    parameters = {name: every[name] for name in list(every)[skip:]}
    hints = resolved(function)
    positional = [p for p in parameters.values() if p.kind is not p.KEYWORD_ONLY]
    known = [name for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY]
    found: dict[str, Any] = {}
    for key, value in given.items():
        if key in known or (positional and key == positional[0].name and main is None):
            found[key] = typed(f"{what}: {key}", value, hints.get(key))
        else:
            raise UserError(
                f"{what} has no option {key!r}{nearest(key, known)} "
                f"(its options: {', '.join(known) or 'none'})"
            )
    if main is not None:
        if not positional:
            raise UserError(f"{what} takes no argument, got {main!r}")
        found[positional[0].name] = typed(what, main, hints.get(positional[0].name))
    called = what.rpartition(" ")[2].strip("'")
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in found:
            how = f"{called}=..." if name not in known else f"{called},{name}=..."
            raise UserError(f"{what} needs its {name}: write {how}")
    return found


def typed(what: str, value: Any, hint: Any) -> Any:
    """``value`` as the annotated type, within its range; text is read as the scalar it looks like.

    Raises:
        UserError: it is none of the types or choices, or out of range.
    """
    option = _option("", None, hint)
    if option.choices:
        if value not in option.choices:
            choices = ", ".join(map(repr, option.choices))
            raise UserError(f"{what} must be one of {choices}, got {value!r}")
        return value
    simple = {kind for kind in option.kinds if kind in (int, float, bool, str)}
    if not simple or not isinstance(value, str | int | float):
        return value  # anything else is given in Python, by someone who can read the signature
    plain = scalar(value)
    number = isinstance(plain, int | float) and not isinstance(plain, bool)
    if bool in simple and isinstance(plain, bool):
        return plain
    if int in simple and number and float(plain).is_integer():
        return _within(what, int(plain), option)
    if float in simple and number:
        return _within(what, float(plain), option)
    if str in simple:
        return str(value)
    wanted = " or ".join(sorted(kind.__name__ for kind in simple))
    raise UserError(f"{what} must be {wanted}, got {value!r}")


def _within(what: str, value: Any, option: Option) -> Any:
    if option.constraint is not None and value not in option.constraint:
        raise UserError(f"{what} must be {option.wording}, got {value!r}")
    return value


def scalar(value: Any) -> Any:
    """Text as the YAML scalar it looks like, 5e-7 being a number; anything else as it is.

    Example:
        >>> scalar("1e-3"), scalar("true"), scalar("phrases")
        (0.001, True, 'phrases')
    """
    if not isinstance(value, str):
        return value
    try:
        return float(value) if "." in value or "e" in value.lower() else int(value)
    except ValueError:
        pass
    import yaml

    try:
        return yaml.safe_load(value) if value else value
    except yaml.YAMLError:
        return value  # text such as a lone brace, for whoever takes text
