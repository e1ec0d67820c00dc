"""Train and test: whole prompts go to one side, so that no prompt is trained on and tested on."""

from __future__ import annotations

import hashlib

from trueline.data.mapped import Mapped, Stream
from trueline.errors import UserError
from trueline.records import Example, Text


def position(prompt: Text, seed: int = 0) -> float:
    """Where a prompt stands in [0, 1): a hash of the prompt and the seed, and of nothing else."""
    text = prompt if isinstance(prompt, str) else repr([(m.role, m.content) for m in prompt])
    digest = hashlib.blake2b(f"{seed}\n{text}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def split_by_prompt(examples: Stream, test_size: float, seed: int = 0) -> tuple[Mapped, Mapped]:
    """Examples as (train, test), decided by a hash of the prompt and the seed.

    Every prompt falls to the test side with probability ``test_size``, whatever else is in the
    data, so adding rows moves none of the others.

    Args:
        examples: a stream that can be read again; each side reads it for itself.
        test_size: expected share of prompts on the test side, in (0, 1).
        seed: another seed, another split.

    Raises:
        UserError: ``test_size`` is out of range; while reading: the side is empty.

    Example:
        >>> from trueline.data import load_examples
        >>> rows = load_examples([{"prompt": f"q{i % 5}", "completion": "a"} for i in range(50)])
        >>> train, test = split_by_prompt(rows, 0.4)
        >>> {e.prompt for e in train} & {e.prompt for e in test}
        set()
    """
    if not 0 < test_size < 1:
        raise UserError(f"test_size must lie between 0 and 1, got {test_size}")

    def side(name: str, *, test: bool) -> Mapped:
        def change(example: Example) -> Example | None:
            return example if (position(example.prompt, seed) < test_size) == test else None

        empty = f"test_size {test_size} leaves the {name} side empty"
        return Mapped(examples, change, [name, test_size, seed], empty=empty)

    return side("train", test=False), side("test", test=True)
