"""Several primary questions at once: Holm's step-down adjustment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from trueline.errors import UserError

Name = TypeVar("Name")


def holm(p_values: Mapping[Name, float]) -> dict[Name, float]:
    """Adjusted p-values that keep the chance of any false claim in the family at the level.

        sorted p_(1) <= ... <= p_(m):  adjusted p_(i) = max_{j <= i} min((m - j + 1) p_(j), 1)

    The family is declared before looking: the primary measures, times the runs compared.

    Args:
        p_values: one for each question.

    Returns:
        The adjusted p-values by the same names, in the same order.

    Raises:
        UserError: a value is outside [0, 1].

    Example:
        >>> holm({"asr": 0.01, "over_refusal": 0.04, "utility": 0.03})
        {'asr': 0.03, 'over_refusal': 0.06, 'utility': 0.06}

    Source: Holm (1979), Scandinavian Journal of Statistics 6, 65-70.
    """
    for name, p in p_values.items():
        if not 0.0 <= p <= 1.0:
            raise UserError(f"a p-value must be between 0 and 1, got {p} for {name!r}")
    adjusted, highest = {}, 0.0
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        highest = max(highest, min((len(p_values) - rank) * p, 1.0))
        adjusted[name] = highest
    return {name: adjusted[name] for name in p_values}
