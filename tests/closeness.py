"""When two ways of computing the same training are the same, on any kind of processor.

AdamW divides by the root of tiny second moments, so one element's rounding noise can be as large as
its step: a bound on each element holds on the kind of processor it was tried on, and elsewhere not.
What has to be small is the difference of the whole against how far the training moved."""

import torch
from torch import Tensor

TOLERANCE = 1e-5


def flat_weights(model) -> Tensor:
    """All weights of a model in one copied float64 vector of shape (N,)."""
    return torch.cat([p.detach().double().flatten() for p in model.parameters()])


def assert_same_movement(one, two, start, *, tolerance=TOLERANCE):
    """|one - two| <= tolerance * |one - start|, each a vector, or a list of tensors, of weights.

    A gradient is the movement of one plain step: then `start` is 0.0."""
    one, two, start = (_vector(value) for value in (one, two, start))
    moved = (one - start).norm().item()
    apart = (one - two).norm().item()
    assert moved > 0, "nothing was trained, so that nothing is shown"
    assert apart <= tolerance * moved, (
        f"apart by {apart:.3g} where the training moved {moved:.3g}: "
        f"{apart / moved:.2g} of it, and {tolerance:.0e} is allowed"
    )


def _vector(value) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach().double().flatten()
    if isinstance(value, float | int):
        return torch.tensor([float(value)], dtype=torch.float64)
    return torch.cat([_vector(part) for part in value])
