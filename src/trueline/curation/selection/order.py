"""The k smallest of any number of values, exactly, in constant memory.

A float32 and an unsigned 32-bit integer sort alike once the float's bits are turned over. Two
passes over the values, counting the upper 16 bits and then the lower ones, find the k-th smallest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from trueline.errors import UserError

Keys: TypeAlias = np.ndarray[Any, np.dtype[np.uint32]]
Bools: TypeAlias = np.ndarray[Any, np.dtype[np.bool_]]


def float_keys(values: Any, *, descending: bool = False) -> Keys:
    """Unsigned integers in the order of float32 values (or in the opposite order).

    Example:
        >>> keys = float_keys([-1.0, 0.5, -2.0])
        >>> np.argsort(keys).tolist()
        [2, 0, 1]
    """
    # Adding zero makes -0.0 and 0.0, which are equal, the same bits.
    bits = (np.asarray(values, dtype=np.float32) + np.float32(0)).view(np.uint32)
    keys = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))
    return ~keys if descending else keys


def random_key(seed: int, *content: object) -> int:
    """A 32-bit number that depends on seed and content alone: the same in any order of rows."""
    text = repr((seed, content)).encode(errors="surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=4).digest(), "big")


@dataclass
class Cut:
    """Takes the k smallest keys of a stream as it passes: every one below ``key`` and the first
    ``ties`` that equal it."""

    key: int
    ties: int

    def take(self, keys: Keys) -> Bools:
        """Which of the next keys of the stream are among the k smallest."""
        equal = keys == self.key
        equal &= equal.cumsum() <= self.ties
        self.ties -= int(equal.sum())
        return (keys < self.key) | equal


def smallest(keys: Callable[[], Iterable[Keys]], k: int) -> Cut:
    """Where the k smallest of the keys end. Of equal keys the earlier ones are taken.

    Args:
        keys: gives the same arrays of keys each time it is called.
        k: how many to take, 0 to all.

    Raises:
        UserError: there are fewer than k.

    Example:
        >>> stream = [np.array([5, 1, 9, 5], dtype=np.uint32)]
        >>> smallest(lambda: stream, 2).take(stream[0]).tolist()
        [True, True, False, False]
    """
    if k == 0:
        return Cut(0, 0)
    upper = np.zeros(1 << 16, dtype=np.int64)
    for array in keys():
        upper += np.bincount(array >> 16, minlength=1 << 16)
    if k > upper.sum():
        raise UserError(f"cannot take {k} of {upper.sum()}")
    high = int(np.searchsorted(np.cumsum(upper), k))
    left = k - int(upper[:high].sum())
    lower = np.zeros(1 << 16, dtype=np.int64)
    for array in keys():
        lower += np.bincount(array[array >> 16 == high] & 0xFFFF, minlength=1 << 16)
    low = int(np.searchsorted(np.cumsum(lower), left))
    return Cut(high << 16 | low, left - int(lower[:low].sum()))
