"""From a name, or several with weights, and options to something a training step can call.

A name is a registered one, or the dotted path of a user's own objective: ``my_losses:mine``. A
function decorated with :func:`trueline.objectives.objective` brings its facts along. Of a plain one
they are found out: the layout from its first parameter's annotation, whether it reads a reference
and whether it couples its batch by calling it once on four made-up rows.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

import torch
from torch import Tensor

from trueline.batching import View
from trueline.errors import UserError
from trueline.logprobs import CompletionLogProbs, PairedLogProbs, UnpairedLogProbs
from trueline.objectives.base import (
    OBJECTIVES,
    BoundObjective,
    LogProbs,
    Objective,
    assemble,
    checked,
    known,
)
from trueline.objectives.combined import Combined
from trueline.options import options_of, resolved
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
    known(given, specs)
    parts = [_bound(s, {k: v for k, v in given.items() if k in s.options}) for s in specs]
    return Combined.of(parts, weights)


def _bound(spec: Objective, given: Mapping[str, Any]) -> BoundObjective:
    return BoundObjective(spec, checked(spec, given))


LAYOUTS: dict[str, View] = {
    PairedLogProbs.__name__: "paired",
    UnpairedLogProbs.__name__: "unpaired",
    CompletionLogProbs.__name__: "completion",
}


def load(path: str) -> Objective:
    """The objective at ``module.path:function``.

    Raises:
        UserError: nothing is there, or what is there is no objective; the message says what to do.
    """
    module_name, _, attribute = path.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), attribute)):
        raise UserError(f"objective {path!r} is not written as my_package.losses:my_loss")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        missing = getattr(error, "name", None) or ""
        if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{missing}."):
            raise UserError(
                f"objective {path!r}: there is no module {missing!r}; install its package, or put "
                "its folder on PYTHONPATH"
            ) from None
        raise UserError(f"objective {path!r}: importing {module_name!r} failed: {error}") from error
    function = getattr(module, attribute, None)
    if not callable(function):
        names = [name for name, value in vars(module).items() if inspect.isfunction(value)]
        raise UserError(
            f"objective {path!r}: module {module_name!r} has no function {attribute!r}"
            f"{nearest(attribute, names)}"
        )
    declared = next((s for s in OBJECTIVES.values() if s.function is function), None)
    return declared or undeclared(path, function)


def undeclared(name: str, function: Callable[..., Tensor]) -> Objective:
    """The facts of a function that no decorator declared.

    Raises:
        UserError: its layout is not annotated, an option has no default, or a trial call fails.
    """
    try:
        declared = options_of(function)
    except TypeError as error:
        raise UserError(f"objective {name!r}: {error}") from None
    layout = _layout(name, function)
    try:
        value, reference = _trial(function, layout, reference=False), False
    except ValueError:  # what log_ratio raises without a reference
        try:
            value, reference = _trial(function, layout, reference=True), True
        except Exception as error:
            raise _failed(name, error) from error
    except Exception as error:
        raise _failed(name, error) from error
    rows = 2 if layout == "paired" else 4
    if not isinstance(value, Tensor) or value.shape not in ((), (rows,)):
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise UserError(
            f"objective {name!r} must return one loss for each row, shape ({rows},) on a trial "
            f"batch of {rows}, or one scalar of the whole effective batch; it returned {shape}"
        )
    if not value.requires_grad:
        raise UserError(
            f"objective {name!r} does not depend on the policy's log-probs: it would train nothing"
        )
    summary = (inspect.getdoc(function) or "").split("\n", 1)[0]
    return Objective(
        name=name,
        function=function,
        layout=layout,
        reference=reference,
        coupled=value.dim() == 0,
        statistic=None,
        equation=summary or "undeclared",
        estimates="",
        source=name,
        options={key: option.default for key, option in declared.items()},
        declared=declared,
    )


def _failed(name: str, error: Exception) -> UserError:
    return UserError(
        f"objective {name!r} failed on a trial batch: {type(error).__name__}: {error}; it must be "
        "a function of log-probs alone"
    )


def _layout(name: str, function: Callable[..., Any]) -> View:
    first = next(iter(inspect.signature(function).parameters))
    hint = resolved(function).get(first)
    written = getattr(hint, "__name__", str(hint)).rsplit(".", 1)[-1]
    if written not in LAYOUTS:
        raise UserError(
            f"objective {name!r}: annotate its first parameter, {first!r}, with what it reads: "
            f"{', '.join(LAYOUTS)} (layouts {', '.join(get_args(View))}); found {hint!r}"
        )
    return LAYOUTS[written]


def _trial(function: Callable[..., Tensor], layout: View, *, reference: bool) -> Tensor:
    policy = torch.tensor([-4.0, -5.0, -6.0, -7.0], requires_grad=True)
    length = torch.tensor([2, 3, 4, 5])
    labels = torch.tensor([True, False, True, False])
    batch: LogProbs = assemble(
        layout, policy, length, policy.detach() - 0.5 if reference else None, labels
    )
    return function(batch)
