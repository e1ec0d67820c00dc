"""What an objective is to the rest of Trueline: a pure function and the facts about it.

Every objective is a function of log-probs alone. The decorator :func:`objective` declares, once,
what the trainer, the command line and the documentation need to know about it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, TypeVar

import torch
from torch import Tensor

from trueline.batching import View
from trueline.errors import UserError
from trueline.logprobs import CompletionLogProbs, PairedLogProbs, UnpairedLogProbs
from trueline.options import Option, options_of
from trueline.registry import Registry, nearest

LogProbs: TypeAlias = CompletionLogProbs | PairedLogProbs | UnpairedLogProbs
Function = TypeVar("Function", bound=Callable[..., Tensor])
Declared = TypeVar("Declared", bound="Declaration")


@dataclass(frozen=True)
class Statistic:
    """A scalar of the whole effective batch that an objective takes as an argument, detached.

    Args:
        argument: the objective's keyword that it fills.
        measure: (log-probs, options of the objective it names) -> 0-dim tensor; on pictures, whose
            predictions stay where they were made, (n,) values, of which the whole's mean is taken.
        of: ``"batch"`` measures the batch itself; ``"mismatched"`` measures completions scored
            behind other examples' prompts (KTO's baseline).
        decay: in exact coupling, the moving average's decay; 0 is the present batch alone.
        log_space: average exp(value) rather than the value, in log space.
    """

    argument: str
    measure: Callable[..., Tensor]
    of: Literal["batch", "mismatched"] = "batch"
    decay: float = 0.0
    log_space: bool = False


@dataclass(frozen=True, kw_only=True)
class Declaration:
    """What is declared of an objective on text or on pictures: its function, what it takes
    (``layout``), whether it reads a reference, its equation and source, and its options, whose
    defaults and ranges the function's signature says.

    What couples an effective batch is one of two: ``coupled`` says that the function's gradient
    depends on the whole of it (a normalizer, a sort), ``statistic`` is a scalar of the whole that
    it takes as an argument.
    """

    name: str
    function: Callable[..., Tensor]
    layout: View
    reference: bool
    equation: str
    source: str
    options: Mapping[str, Any] = field(default_factory=dict)
    declared: Mapping[str, Option] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    coupled: bool = False
    statistic: Statistic | None = None

    @property
    def summary(self) -> str:
        """The first line of the function's docstring."""
        return (inspect.getdoc(self.function) or "").split("\n", 1)[0]

    def measure(self, batch: Any, options: Mapping[str, Any]) -> Tensor:
        """The statistic measured on a batch with these options, detached."""
        assert self.statistic is not None
        measured: Tensor = _call(self.statistic.measure, batch, options)
        return measured.detach()


def known(given: Iterable[str], specs: Sequence[Declaration]) -> None:
    """Every option is one that at least one of these objectives has.

    Raises:
        UserError: one has no effect; the message names the nearest.
    """
    options = {key: value for spec in specs for key, value in spec.options.items()}
    for key in given:
        if key not in options:
            listed = ", ".join(f"{k}={v}" for k, v in options.items()) or "none"
            names = " + ".join(spec.name for spec in specs)
            raise UserError(
                f"option {key!r} has no effect on objective {names!r}"
                f"{nearest(key, options)} (its options: {listed})"
            )


def checked(spec: Declaration, given: Mapping[str, Any]) -> dict[str, Any]:
    """A value for each of the objective's options.

    Raises:
        UserError: an option that it does not have, of the wrong type or out of range.
    """
    known(given, [spec])
    found = {key: spec.declared[key].check(value, spec.name) for key, value in given.items()}
    return {**spec.options, **found}


@dataclass(frozen=True, kw_only=True)
class Objective(Declaration):
    """An objective's function with the facts declared about it.

    A coupled one returns one scalar of the whole effective batch. Any other returns (B,) losses to
    be averaged, or a scalar of class means E+ and E-, to which parts of a batch add up.
    """

    estimates: str = ""
    metrics: Callable[..., Mapping[str, Tensor]] | None = None
    requires: tuple[str, ...] = ()
    per_token: bool = False


OBJECTIVES: Registry[Objective] = Registry("objective")


def objective(
    name: str,
    *,
    layout: View,
    equation: str,
    source: str,
    estimates: str = "",
    reference: bool = True,
    coupled: bool = False,
    statistic: Statistic | None = None,
    metrics: Callable[..., Mapping[str, Tensor]] | None = None,
    aliases: Sequence[str] = (),
    requires: Sequence[str] = (),
    per_token: bool = False,
) -> Callable[[Function], Function]:
    """Register a function of log-probs as an objective; its keyword-only arguments are its options.

    Args:
        name: what ``loss_type`` calls it.
        layout: ``"paired"`` (PairedLogProbs), ``"unpaired"`` (UnpairedLogProbs) or ``"completion"``
            (CompletionLogProbs of the completions to imitate).
        equation: one line, in plain text.
        source: paper and equation.
        estimates: the divergence its minimum is, where it is one.
        reference: whether it reads reference log-probs.
        coupled: whether it returns one scalar of the whole effective batch.
        statistic: a scalar of the whole effective batch that it takes as an argument.
        metrics: extra values to log, a function of the same log-probs.
        aliases: other names, such as TRL's.
        requires: columns of the data without which it would be another objective.
        per_token: without a reference, whether it reads log-probs per token, which its implicit
            rewards then are, too (:meth:`BoundObjective.reward`).

    Raises:
        TypeError: a parameter that is neither the batch nor a keyword with a default.
        ValueError: the name is taken.
    """

    return declaring(
        OBJECTIVES, Objective, name, aliases, statistic, layout=layout, reference=reference,
        equation=equation, source=source, coupled=coupled, estimates=estimates, metrics=metrics,
        requires=tuple(requires), per_token=per_token,
    )  # fmt: skip


def declaring(
    registry: Registry[Declared],
    kind: Callable[..., Declared],
    name: str,
    aliases: Sequence[str],
    statistic: Statistic | None,
    **facts: Any,
) -> Callable[[Function], Function]:
    """The decorator that puts a function with its facts into ``registry``; its options are those of
    its signature."""

    def register(function: Function) -> Function:
        declared = options_of(function, () if statistic is None else (statistic.argument,))
        options = {key: option.default for key, option in declared.items()}
        spec = kind(name=name, function=function, statistic=statistic, aliases=tuple(aliases),
                    options=options, declared=declared, **facts)  # fmt: skip
        registry.add(name, spec, aliases)
        return function

    return register


@dataclass(frozen=True)
class BoundObjective:
    """An objective with its options, checked: what a training step calls.

    Example:
        >>> BoundObjective(OBJECTIVES["dpo"], {"beta": 0.2}).beta
        0.2
    """

    spec: Objective
    options: Mapping[str, Any]

    @property
    def layout(self) -> View:
        return self.spec.layout

    @property
    def beta(self) -> float:
        """The scale of rewards in metrics; 1 where the objective has no beta."""
        return float(self.options.get("beta", 1.0))

    def reward(self, completions: CompletionLogProbs) -> Tensor:
        """(B,) implicit rewards, nats: beta times the log-ratio or, without a reference, beta
        times the log-prob, per token where the objective reads it so (as TRL logs CPO, SimPO and
        ORPO)."""
        if completions.reference is not None:
            return self.beta * completions.log_ratio
        return self.beta * (completions.mean if self.spec.per_token else completions.policy)

    def require(self, columns: Collection[str]) -> None:
        """Check that the data has what the objective's name promises.

        Args:
            columns: what at least one row has, such as ``reference_prompt``.

        Raises:
            UserError: a column is missing without which this would be another objective.
        """
        for column in self.spec.requires:
            if column not in columns:
                raise UserError(
                    f"objective {self.spec.name!r} needs {column!r} in the data, and no row has "
                    "it; add the column, or choose the objective without it"
                )

    def losses(self, batch: LogProbs, **statistics: Tensor) -> Tensor:
        """(B,) losses, or a scalar: of a coupled objective, or of class means."""
        return self.spec.function(batch, **self.options, **statistics)

    def loss(self, batch: LogProbs, *, total: int | None = None, **statistics: Tensor) -> Tensor:
        """The scalar loss; ``total`` is B of the whole where ``batch`` is a part of it.

        An empty batch is a connected 0.
        """
        losses = self.losses(batch, **statistics)
        if losses.dim() == 0:
            return losses
        return losses.sum() / max(len(batch) if total is None else total, 1)

    def measure(self, batch: LogProbs) -> Tensor:
        """The value of the objective's statistic on ``batch``, detached."""
        return self.spec.measure(batch, self.options)

    def metrics(self, batch: LogProbs) -> Mapping[str, Tensor]:
        """The objective's own extra metrics."""
        if self.spec.metrics is None:
            return {}
        return _call(self.spec.metrics, batch, self.options)


def _call(function: Callable[..., Any], batch: Any, options: Mapping[str, Any]) -> Any:
    wanted = inspect.signature(function).parameters
    return function(batch, **{key: options[key] for key in wanted if key in options})


def assemble(
    layout: View,
    policy: Tensor,
    length: Tensor,
    reference: Tensor | None,
    desirable: Tensor,
    counts: tuple[int, int] | None = None,
    tokens: int | None = None,
) -> LogProbs:
    """(C,) values of completions in tree order as what an objective of ``layout`` takes.

    Paired trees alternate chosen, rejected.
    """
    completions = CompletionLogProbs(policy, length, reference, tokens)
    if layout == "completion":
        return completions
    if layout == "unpaired":
        return UnpairedLogProbs(completions, desirable, counts)
    return PairedLogProbs(
        completions.map(lambda tensor: tensor[0::2]), completions.map(lambda tensor: tensor[1::2])
    )


def coefficients(loss: Callable[[Tensor], Tensor], policy: Tensor) -> tuple[Tensor, Tensor]:
    """The loss and dL/dlog pi of every completion, (C,): all a model learns from an objective.

    Args:
        loss: a scalar function of the (C,) policy log-probs.
        policy: (C,) log-probs, nats.

    Example:
        >>> import torch
        >>> _, c = coefficients(lambda logps: (logps * torch.tensor([2.0, -1.0])).sum(),
        ...                     torch.tensor([-3.0, -4.0]))
        >>> c.tolist()
        [2.0, -1.0]
    """
    leaf = policy.detach().requires_grad_(True)
    with torch.enable_grad():
        value = loss(leaf)
        (gradient,) = torch.autograd.grad(value, leaf)
    return value.detach(), gradient
