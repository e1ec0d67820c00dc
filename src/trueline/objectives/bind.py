"""From a name, or several with weights, and options to something a training step can call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trueline.errors import UserError
from trueline.objectives.base import OBJECTIVES, BoundObjective, Objective
from trueline.objectives.combined import Combined
from trueline.objectives.dotted import load
from trueline.registry import UnknownNameError, nearest


def find(name: str) -> Objective:
    """A registered objective, or a user's own at ``my_package.losses:mine``.

    Raises:
        UnknownNameError: there is none; the message names the nearest.
        UserError: a dotted path leads to no objective.
    """
    if ":" in name:
        return load(name)
    try:
        return OBJECTIVES[name]
    except UnknownNameError as error:
        path = name.rpartition(".")
        hint = f"; a function of your own is written {path[0]}:{path[2]}" if path[0] else ""
        raise UnknownNameError(f"{error}{hint}") from None


def bind(
    name: str | Sequence[str],
    options: Mapping[str, Any] | None = None,
    *,
    weights: Sequence[float] | None = None,
) -> BoundObjective:
    """Look up an objective, or a weighted sum of several, and give it its options.

    Args:
        name: an objective's name, an alias, a dotted path ``my_package.losses:mine``, or a list.
        options: values by option name; in a sum each goes to every part that has the option.
        weights: one positive number for each part of a list; 1 where not given.

    Raises:
        UserError: an unknown name; an option that no part has (it would have no effect), of the
            wrong type or out of range; weights that do not fit the list.

    Example:
        >>> bind("dpo", {"beta": 0.2}).options["beta"]
        0.2
        >>> bind(["dpo", "sft"], {"beta": 0.2}, weights=[1, 0.2]).spec.name
        'dpo + 0.2 sft'
    """
    given = dict(options or {})
    if isinstance(name, str):
        if weights is not None:
            raise UserError(
                f"weights {list(weights)} have no effect on the one objective {name!r}; "
                "give a list of objectives, or no weights"
            )
        return _bound(find(name), given)
    specs = [find(part) for part in name]
    _check_known(given, specs)
    parts = [_bound(s, {k: v for k, v in given.items() if k in s.options}) for s in specs]
    return Combined.of(parts, weights)


def _bound(spec: Objective, given: Mapping[str, Any]) -> BoundObjective:
    _check_known(given, [spec])
    checked = {key: spec.declared[key].check(value, spec.name) for key, value in given.items()}
    return BoundObjective(spec, {**spec.options, **checked})


def _check_known(given: Mapping[str, Any], specs: Sequence[Objective]) -> None:
    """Every option is one that at least one of these objectives has."""
    options = {key: value for spec in specs for key, value in spec.options.items()}
    for key in given:
        if key not in options:
            known = ", ".join(f"{k}={v}" for k, v in options.items()) or "none"
            names = " + ".join(spec.name for spec in specs)
            raise UserError(
                f"option {key!r} has no effect on objective {names!r}"
                f"{nearest(key, options)} (its options: {known})"
            )
