"""Pictures from files to the model's input, read by workers ahead of when they are asked for.

What is drawn is known steps ahead, so that workers decode, resize and crop while the model trains.
A picture's key is all that its latents depend on beside the encoder: the file's bytes, where the
square lies, and whether it is mirrored.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from trueline.diffusion.data.images import Framed, frame
from trueline.diffusion.data.load import ImageExample

MIDDLE = (0.5, 0.5)
AHEAD = 32
"""Pictures that lie ready at most for each worker."""


@dataclass(frozen=True)
class View:
    """Which picture is wanted: of which example, its how-manyth image, mirrored or not."""

    example: int
    image: int
    flip: bool = False


@dataclass(frozen=True)
class Framing:
    """How images become the model's input.

    Args:
        size: pixels of a side.
        flip: whether mirrored copies are drawn.
        random_crop: cut the square out of a place of its own for each example, the same for both
            images of a pair and in every epoch; otherwise out of the middle.
        seed: decides those places.
    """

    size: int
    flip: bool = False
    random_crop: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Read:
    """A picture's key, and the picture; None where its key was known already."""

    key: bytes
    framed: Framed | None


class Frames:
    """The examples' pictures, framed.

    Args:
        examples: the data.
        framing: how images become the model's input.
        known: whether a key's picture need not be decoded.
        workers: threads that read ahead; 0 reads when asked.
    """

    def __init__(
        self,
        examples: Sequence[ImageExample],
        framing: Framing,
        known: Callable[[bytes], bool],
        *,
        workers: int = 0,
    ) -> None:
        self.examples, self.framing, self.known = examples, framing, known
        self._workers = workers
        self._pool: ThreadPoolExecutor | None = None
        self._coming: Iterator[tuple[int, View]] = iter(())
        self._ahead: dict[View, tuple[int, Future[Read]]] = {}
        self._keys: dict[View, bytes] = {}

    def expect(self, coming: Iterator[tuple[int, View]]) -> None:
        """Begin to read what will be asked for, in this order; each with the step that asks.
        Who reads is at work until ``close``."""
        self._coming = coming
        if self._workers and self._pool is None:
            self._pool = ThreadPoolExecutor(self._workers, "frames")
        self._fill()

    def begin(self, step: int) -> None:
        """Let go of what earlier steps were expected to ask for and did not."""
        late = [view for view, (due, _) in self._ahead.items() if due < step]
        for view in late:
            self._ahead.pop(view)[1].cancel()
        self._fill()

    def read(self, view: View) -> Read:
        """The picture.

        Raises:
            CorruptImageError: it cannot be read.
        """
        if view not in self._ahead:
            return self._load(view)
        _, future = self._ahead.pop(view)
        self._fill()
        return future.result()

    def close(self) -> None:
        """Send the workers home; what they have not begun to read is read when it is asked for."""
        self._coming = iter(())
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None
        self._ahead.clear()

    def _fill(self) -> None:
        while self._pool is not None and len(self._ahead) < AHEAD * self._workers:
            step, view = next(self._coming, (0, None))
            if view is None:
                return
            if view not in self._ahead:
                self._ahead[view] = step, self._pool.submit(self._load, view)

    def _load(self, view: View) -> Read:
        key = self._keys.get(view)
        if key is not None and self.known(key):
            return Read(key, None)
        example = self.examples[view.example]
        source, place = example.images[view.image], self._place(example)
        data = source.read()
        if key is None:
            digest = hashlib.blake2b(repr((place, view.flip)).encode(), digest_size=16)
            digest.update(data)
            key = self._keys[view] = digest.digest()
            if self.known(key):
                return Read(key, None)
        framed = frame(data, self.framing.size, place, source.name)
        return Read(key, framed.flipped() if view.flip else framed)

    def _place(self, example: ImageExample) -> tuple[float, float]:
        """Where the example's squares lie: a matter of its content, not its place in the data."""
        if not self.framing.random_crop:
            return MIDDLE
        digest = hashlib.blake2b(digest_size=8)
        digest.update(self.framing.seed.to_bytes(8, "little", signed=True))
        digest.update(example.caption.encode())
        digest.update(example.images[0].read())
        low, high = (int.from_bytes(digest.digest()[k : k + 4], "little") for k in (0, 4))
        return low / 2**32, high / 2**32
