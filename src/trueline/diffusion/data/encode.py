"""Latents and text embeddings: encoded when they are first drawn, and kept by content.

Nothing is encoded that no step asks for. What is kept of a latent is its mean and log-variance, so
that each step still draws its own, in half precision unless asked otherwise; what is not kept is
rounded alike, so that a cache changes no number.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor

from trueline.diffusion.data.frames import Frames, Framing, Read, View
from trueline.diffusion.data.images import CorruptImageError, Framed
from trueline.diffusion.data.keeping import Estimate, Keeping, folder_names
from trueline.diffusion.data.load import ImageExample
from trueline.diffusion.data.store import Budget, TensorStore, Values, free_bytes
from trueline.diffusion.models.families import Conditions, TextToImage
from trueline.errors import UserError
from trueline.training.coupling import world_size

log = logging.getLogger(__name__)

Advance: TypeAlias = Callable[[int], None]


class Encodings:
    """What the frozen parts make of the examples.

    Args:
        model: whose encoders.
        examples: the data.
        framing: how images become the model's input.
        keeping: how what was encoded is kept.
        chosen_only: whether only desirable images are ever asked for.

    ``alone`` is held by whoever encodes, writes, or uses the encoders for another purpose.
    """

    def __init__(
        self,
        model: TextToImage,
        examples: Sequence[ImageExample],
        framing: Framing,
        keeping: Keeping | None = None,
        *,
        chosen_only: bool = False,
    ) -> None:
        self.model, self.examples, self.framing = model, list(examples), framing
        self.keeping = keeping = keeping or Keeping()
        self.chosen_only = chosen_only
        self.bad: dict[int, str] = {}
        self.alone = threading.RLock()
        kept = keeping.folder if keeping.cached else None
        names = folder_names(model, framing, keeping.half) if kept else ("", "")
        budget = Budget(keeping.limit)
        self.images, self.captions = (
            TensorStore(kept / name if kept else None, budget=budget) for name in names
        )
        known = self.images.__contains__ if keeping.cached else lambda key: False
        self.frames = Frames(self.examples, framing, known, workers=keeping.workers)
        self._read: dict[View, Read] = {}

    def numbers(self, index: int) -> list[int]:
        """Which of an example's images are ever asked for."""
        labels = self.examples[index].desirable
        return [i for i, good in enumerate(labels) if good or not self.chosen_only]

    # --- before the start ---------------------------------------------------------------------

    def estimate(self, first: View, draws: int, *, captions_dropped: bool = False) -> Estimate:
        """What ``draws`` drawn examples come to, by the size of the first, encoded for it.

        Raises:
            UserError: there is less room on the disk than that, and no limit.
        """
        examples, index = self.examples, self.stand_in(first.example, first.flip)
        views = [View(index, number, first.flip) for number in self.numbers(index)]
        image = sum(value[0].nbytes for value in self.latents(views[:1]).values())
        spoken = self.conditions([examples[index].caption])
        drawn = min(draws, len(examples) * (2 if self.framing.flip else 1))
        words = min(draws, len({example.caption for example in examples})) + captions_dropped
        there = self.images.bytes + self.captions.bytes
        found = Estimate(
            drawn * len(views), words, image, sum(v[0].nbytes for v in spoken.values()), there
        )
        folder, limit = self.keeping.folder, self.keeping.limit
        if self.keeping.cached and folder is not None and limit is None:
            free = free_bytes(folder)
            if found.bytes - there > free:
                raise UserError(
                    f"{found}; {folder} has {free / 1e9:.3g} GB free. Set cache_limit_gb (the rest "
                    "is encoded each time), cache_dir, a smaller max_samples or max_steps, or "
                    "cache_latents: false"
                )
        return found

    def prepare(self, *, advance: Advance | None = None) -> None:
        """Encode all that can be drawn, each rank its share, before anything asks for it.

        Args:
            advance: called with how many more examples are done.

        Raises:
            UserError: an image cannot be read, and such are not skipped.
        """
        shared = self.images.folder is not None
        rank, ranks = (_rank(), world_size()) if shared else (0, 1)
        mine = range(rank, len(self.examples), ranks)
        flips = (False, True) if self.framing.flip else (False,)
        wanted = [[View(i, n, f) for f in flips for n in self.numbers(i)] for i in mine]
        self.frames.expect((0, view) for views in wanted for view in views)
        try:
            for views in wanted:
                if self._readable(views):
                    self.latents(views)
                    self.conditions([self.examples[views[0].example].caption])
                if advance is not None:
                    advance(1)
            self.conditions([""])
        finally:
            self.frames.close()
            self.flush()  # an interrupted pass goes on where it stopped
        if world_size() > 1:
            everyone: list[dict[int, str]] = [{} for _ in range(world_size())]
            dist.all_gather_object(everyone, self.bad)
            self.bad = {index: why for part in everyone for index, why in part.items()}
            self.refresh()

    def flush(self) -> None:
        """Write what is not on disk yet."""
        with self.alone:
            self.images.flush()
            self.captions.flush()

    def refresh(self) -> None:
        """Take in what other processes have written."""
        self.images.refresh()
        self.captions.refresh()

    # --- asking -------------------------------------------------------------------------------

    def stand_in(self, index: int, flip: bool) -> int:
        """The example, or the next whose images can be read where this one's cannot.

        Raises:
            UserError: an image cannot be read, and such are not skipped; none can be read.
        """
        count = len(self.examples)
        for candidate in ((index + k) % count for k in range(count)):
            views = [View(candidate, number, flip) for number in self.numbers(candidate)]
            if candidate not in self.bad and self._readable(views):
                return candidate
        raise UserError(f"no example has readable images; the first: {min(self.bad.items())[1]}")

    def _readable(self, views: Sequence[View]) -> bool:
        try:
            for view in views:
                if view not in self._read:
                    self._read[view] = self.frames.read(view)
        except CorruptImageError as error:
            if not self.keeping.skip_bad:
                raise UserError(f"{error}; skip_bad: true leaves such rows out") from None
            log.warning("left out: %s", error)
            self.bad[views[0].example] = str(error)
            for view in views:
                self._read.pop(view, None)
            return False
        return True

    def latents(self, views: Sequence[View]) -> dict[str, Tensor]:
        """Mean, log-variance (where the encoder has one) and framing conditions, (N, ...) each."""
        read = [
            self._read.pop(view) if view in self._read else self.frames.read(view) for view in views
        ]
        fresh = {one.key: one.framed for one in read if one.framed is not None}
        made = dict(zip(fresh, self._encode(list(fresh.values())), strict=True))
        if self.keeping.cached:
            for key, values in made.items():
                self.images.add(key, values)
        return _stack([made[one.key] if one.key in made else self.images[one.key] for one in read])

    def conditions(self, captions: Sequence[str]) -> Conditions:
        """(N, ...) conditions of captions."""
        cached = self.keeping.cached
        missing = [
            c for c in dict.fromkeys(captions) if not cached or _caption_key(c) not in self.captions
        ]
        made = dict(zip(missing, self._encode_captions(missing), strict=True))
        if cached:
            for caption, values in made.items():
                self.captions.add(_caption_key(caption), values)
        return _stack([made[c] if c in made else self.captions[_caption_key(c)] for c in captions])

    # --- encoding -----------------------------------------------------------------------------

    def _encode(self, frames: Sequence[Framed]) -> list[dict[str, Tensor]]:
        rows: list[dict[str, Tensor]] = []
        for some in _chunks(frames, self.keeping.batch_size):
            found = self.model.encode_images(torch.stack([f.pixels for f in some]))
            if self.model.image_encoder is not None:
                found = self._rounded(found)
            rows += [
                {name: value[i].cpu() for name, value in found.items()} | self.model.framing(f)
                for i, f in enumerate(some)
            ]
        return rows

    def _encode_captions(self, captions: Sequence[str]) -> list[dict[str, Tensor]]:
        rows: list[dict[str, Tensor]] = []
        for some in _chunks(captions, self.keeping.batch_size):
            found = self.model.encode_captions(some)
            if self.model.encoders:
                found = self._rounded(found)
            rows += [{name: v[i].cpu() for name, v in found.items()} for i in range(len(some))]
        return rows

    def _rounded(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if not self.keeping.half:
            return dict(values)
        kept = {n: v.half() if v.is_floating_point() else v for n, v in values.items()}
        for name, value in kept.items():
            if value.isinf().any() and not values[name].isinf().any():
                raise UserError(f"{name} overflows half precision; set cache_dtype: float32")
        return kept


def _caption_key(caption: str) -> bytes:
    return hashlib.blake2b(caption.encode(), digest_size=16).digest()


def _rank() -> int:
    return dist.get_rank() if world_size() > 1 else 0


def _chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (items[k : k + size] for k in range(0, len(items), size))


def _stack(rows: Sequence[Values]) -> dict[str, Tensor]:
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]} if rows else {}
