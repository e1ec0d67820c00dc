"""What counts as an outcome: true, false, or None where nothing was scored."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trueline.errors import UserError


def scored(outcomes: Sequence[bool | None]) -> list[bool]:
    """The outcomes that were scored, as bools.

    Raises:
        UserError: an outcome is no truth value.

    Example:
        >>> scored([True, None, 0])
        [True, False]
    """
    kept = [outcome for outcome in outcomes if outcome is not None]
    for outcome in kept:
        if not isinstance(outcome, bool | np.bool_ | int) or outcome not in (0, 1):
            raise UserError(f"an outcome must be true, false or None (unscored), got {outcome!r}")
    return [bool(outcome) for outcome in kept]


def scored_both(
    before: Sequence[bool | None], after: Sequence[bool | None]
) -> list[tuple[int, bool, bool]]:
    """(place, before, after) of the items that both models were scored on.

    Raises:
        UserError: the lists differ in length, or an outcome is no truth value.

    Example:
        >>> scored_both([True, None, True], [False, True, True])
        [(0, True, False), (2, True, True)]
    """
    if len(before) != len(after):
        raise UserError(
            f"paired outcomes must be of the same items, got {len(before)} before and "
            f"{len(after)} after"
        )
    both = zip(before, after, strict=True)
    places = [i for i, (b, a) in enumerate(both) if b is not None and a is not None]
    first, second = scored([before[i] for i in places]), scored([after[i] for i in places])
    return list(zip(places, first, second, strict=True))
