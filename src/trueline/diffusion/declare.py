"""What a diffusion objective is to the rest of Trueline: a pure function and the facts about it.

It is declared as an objective on text is (:class:`trueline.objectives.base.Declaration`), over
predictions in place of log-probs: :func:`diffusion_objective` says, once, what the trainer, the
command line and the documentation need to know.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trueline.batching import View
from trueline.diffusion.models.predictions import AnyPredictions
from trueline.errors import UserError
from trueline.objectives.base import Declaration, Function, Statistic, declaring
from trueline.registry import Registry


@dataclass(frozen=True, kw_only=True)
class DiffusionObjective(Declaration):
    """An objective on images with the facts declared about it.

    ``layout`` is ``"paired"``, ``"unpaired"`` or ``"completion"`` (the images to imitate). A
    function returns (B,) losses to be averaged over the effective batch. ``one_sided`` says
    whether, with these options, no gradient reaches the rejected images' predictions;
    ``squared_error`` whether the losses are mean squared errors, which timesteps' weights apply to.
    """

    epsilon_only: bool = False
    one_sided: Callable[[Mapping[str, Any]], bool] | None = None
    squared_error: bool = False


DIFFUSION_OBJECTIVES: Registry[DiffusionObjective] = Registry("diffusion objective")


def diffusion_objective(
    name: str,
    *,
    layout: View,
    equation: str,
    source: str,
    reference: bool = True,
    epsilon_only: bool = False,
    statistic: Statistic | None = None,
    one_sided: Callable[[Mapping[str, Any]], bool] | None = None,
    squared_error: bool = False,
    aliases: Sequence[str] = (),
) -> Callable[[Function], Function]:
    """Register a function of predictions as an objective; its keyword-only arguments are its
    options.

    Args:
        name: what ``loss_type`` calls it.
        layout: what it takes: PairedPredictions, LabeledPredictions or Predictions.
        equation: one line, in plain text.
        source: paper and equation.
        reference: whether it reads the reference's predictions.
        epsilon_only: whether its constants are measured in units of noise errors, so that it is
            another objective where the model predicts something else.
        statistic: a mean over the whole effective batch that it takes as an argument.
        one_sided: whether, with these options, no gradient reaches the rejected images'
            predictions, so that they need no backward pass.
        squared_error: whether its losses are mean squared errors.
        aliases: other names.
    """

    return declaring(
        DIFFUSION_OBJECTIVES, DiffusionObjective, name, aliases, statistic, layout=layout,
        reference=reference, equation=equation, source=source, epsilon_only=epsilon_only,
        one_sided=one_sided, squared_error=squared_error,
    )  # fmt: skip


def require_epsilon(name: str, batch: AnyPredictions) -> None:
    """Refuse predictions that are not of the noise.

    Raises:
        UserError: they are v or flow predictions; the message says what to do.
    """
    if batch.space != "epsilon":
        raise UserError(epsilon_message(name, batch.space))


def epsilon_message(name: str, space: str) -> str:
    """Why an objective refuses a space, and the remedy."""
    return (
        f"objective {name!r} measures errors of predicted noise and this model predicts {space!r}; "
        "set error_space: epsilon to convert its predictions to noise, or choose another objective"
    )
