"""Which precision this machine is fast in.

A processor with AVX512-BF16 or AMX multiplies bf16 matrices some two times faster than float32;
one without them runs a scalar loop, some ten times slower. So it is measured, not looked up.
"""

from __future__ import annotations

import functools
import time

import torch

SIZE = 1024
"""Rows and columns of the product that is timed."""


def seconds(dtype: torch.dtype) -> float:
    """Processor seconds of one product of 1024 x 1024 on the CPU, the second of two."""
    a = torch.ones(SIZE, SIZE, dtype=dtype)
    spent = 0.0
    for _ in range(2):
        begin = time.process_time()
        a @ a
        spent = time.process_time() - begin
    return spent


@functools.cache
def bf16_speed() -> float:
    """How many times faster the CPU multiplies in bf16 than in float32; measured once."""
    return seconds(torch.float32) / max(seconds(torch.bfloat16), 1e-9)


def slow_bf16(option: str, remedy: str) -> str | None:
    """A line for whoever asked for bf16 where it is slower; None where it is not."""
    speed = bf16_speed()
    if speed > 0.9:  # a difference that noise makes is not worth a word
        return None
    return (
        f"{option} is {1 / speed:.1f} times slower than float32 on this processor (a product of "
        f"{SIZE}, timed); {remedy} is faster"
    )
