"""Latents and text embeddings: encoded once, kept by content, or computed when asked for.

The key of an image is what its latents depend on: the file's bytes, the frame, and, as the
folder's name, the encoder's weights and the resolution. With flips a mirrored copy is kept beside
it; what is kept of a latent is its mean and log-variance, so that each step still draws its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeAlias, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trueline.diffusion.data import ImageExample
from trueline.diffusion.families import Conditions, TextToImage
from trueline.diffusion.images import CorruptImageError, Framed, frame
from trueline.diffusion.store import TensorStore, Values
from trueline.errors import UserError
from trueline.files import cache_folder as kept_in
from trueline.fingerprint import fingerprint
from trueline.training.coupling import world_size

MIDDLE = (0.5, 0.5)

Advance: TypeAlias = Callable[[int], None]


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
        flip: whether mirrored copies are asked for.
        random_crop: cut the square out of a place of its own for each example, the same for both
            images of a pair and in every epoch; otherwise out of the middle.
        seed: decides those places.
    """

    size: int
    flip: bool = False
    random_crop: bool = False
    seed: int = 0


class Encodings:
    """What the frozen parts make of the examples.

    Args:
        model: whose encoders.
        examples: the data.
        framing: how images become the model's input.
        folder: where to keep what was encoded; None keeps it in memory.
        cached: whether to keep anything at all.
        batch_size: images, or captions, encoded at once.
    """

    def __init__(
        self,
        model: TextToImage,
        examples: Sequence[ImageExample],
        framing: Framing,
        *,
        folder: Path | None = None,
        cached: bool = True,
        batch_size: int = 8,
    ) -> None:
        self.model = model
        self.examples = list(examples)
        self.framing = framing
        self.cached = cached
        self.batch_size = batch_size
        self.dropped: list[str] = []
        self._keys: dict[tuple[int, int], bytes] = {}
        images, captions = _folders(model, framing) if cached and folder else ("", "")
        self.images = TensorStore(folder / images if folder and cached else None)
        self.captions = TensorStore(folder / captions if folder and cached else None)

    # --- filling ------------------------------------------------------------------------------

    def prepare(self, *, skip_bad: bool = False, advance: Advance | None = None) -> list[str]:
        """Encode what is missing, each rank its share, and find the images that cannot be read.

        Args:
            skip_bad: leave examples with such images out (of ``examples``, too) and say so in
                ``dropped``.
            advance: called with how many more examples are done.

        Returns:
            What is wrong, one line for each example left out.

        Raises:
            UserError: an image cannot be read, and ``skip_bad`` is off.
        """
        share = self.images.folder is not None or not self.cached
        rank, ranks = (_rank(), world_size()) if share else (0, 1)
        mine = range(rank, len(self.examples), ranks)
        try:
            bad = self._encode_all(mine, skip_bad, advance)
        finally:
            self.images.flush()  # an interrupted pass goes on where it stopped
            self.captions.flush()
        if world_size() > 1:
            everyone: list[dict[int, str]] = [{} for _ in range(world_size())]
            dist.all_gather_object(everyone, bad)
            bad = {index: why for part in everyone for index, why in part.items()}
            self.images.refresh()
            self.captions.refresh()
        self._leave_out(bad)
        return self.dropped

    def _encode_all(
        self, mine: Sequence[int], skip_bad: bool, advance: Advance | None
    ) -> dict[int, str]:
        bad: dict[int, str] = {}
        waiting: list[tuple[bytes, Framed]] = []
        for index in mine:
            try:
                waiting += self._missing(index)
            except CorruptImageError as error:
                if not skip_bad:
                    raise UserError(f"{error}; skip_bad: true leaves such rows out") from None
                bad[index] = str(error)
            if len(waiting) >= self.batch_size:
                self._encode_images(waiting)
                waiting = []
            if advance is not None:
                advance(1)
        self._encode_images(waiting)
        if self.cached:
            captions = dict.fromkeys(["", *(self.examples[index].caption for index in mine)])
            missing = [c for c in captions if _caption_key(c) not in self.captions]
            for some in _chunks(missing, self.batch_size):
                for caption, values in zip(some, self._encode_captions(some), strict=True):
                    self.captions.add(_caption_key(caption), values)
        return bad

    def _missing(self, index: int) -> list[tuple[bytes, Framed]]:
        """The example's images that are not kept yet; all must be readable."""
        found = []
        for number in range(len(self.examples[index].images)):
            if not (self.cached and self._key(index, number) in self.images):
                framed = self._frame(index, number)
                if self.cached:
                    found.append((self._key(index, number), framed))
        return found

    def _encode_images(self, waiting: Sequence[tuple[bytes, Framed]]) -> None:
        for some in _chunks(waiting, self.batch_size):
            plain = self._encode([framed for _, framed in some])
            turned = [framed.flipped() for _, framed in some] if self.framing.flip else []
            mirrored = self._encode(turned)
            for position, (key, _) in enumerate(some):
                values = dict(plain[position])
                if mirrored:
                    values |= {f"{n}_flipped": v for n, v in mirrored[position].items()}
                self.images.add(key, values)

    def _leave_out(self, bad: Mapping[int, str]) -> None:
        if not bad:
            return
        self.dropped += [bad[index] for index in sorted(bad)]
        self.examples = [e for i, e in enumerate(self.examples) if i not in bad]
        self._keys.clear()
        if not self.examples:
            raise UserError(f"no example has readable images; the first: {self.dropped[0]}")

    # --- asking -------------------------------------------------------------------------------

    def latents(self, views: Sequence[View]) -> dict[str, Tensor]:
        """Mean, log-variance (where the encoder has one) and framing conditions, (N, ...) each."""
        if not self.cached:
            frames = [self._frame(v.example, v.image) for v in views]
            turned = [f.flipped() if v.flip else f for f, v in zip(frames, views, strict=True)]
            return _stack([row for some in _chunks(turned, self.batch_size)
                           for row in self._encode(some)])  # fmt: skip
        rows = []
        for view in views:
            kept = self._kept(view)
            suffix = "_flipped" if view.flip else ""
            names = [name for name in kept if not name.endswith("_flipped")]
            rows.append({name: kept[name + suffix] for name in names})
        return _stack(rows)

    def conditions(self, captions: Sequence[str]) -> Conditions:
        """(N, ...) conditions of captions."""
        if not self.cached:
            return _stack(self._encode_captions(captions))
        missing = [c for c in dict.fromkeys(captions) if _caption_key(c) not in self.captions]
        for caption, values in zip(missing, self._encode_captions(missing), strict=True):
            self.captions.add(_caption_key(caption), values)
        return _stack([self.captions[_caption_key(caption)] for caption in captions])

    def _kept(self, view: View) -> Values:
        key = self._key(view.example, view.image)
        if key not in self.images:  # another node's folder may be another disk
            self._encode_images([(key, self._frame(view.example, view.image))])
        return self.images[key]

    # --- encoding -----------------------------------------------------------------------------

    def _encode(self, frames: Sequence[Framed]) -> list[dict[str, Tensor]]:
        if not frames:
            return []
        found = self.model.encode_images(torch.stack([f.pixels for f in frames]))
        rows = [{name: value[i].cpu() for name, value in found.items()} for i in range(len(frames))]
        return [row | self.model.framing(f) for row, f in zip(rows, frames, strict=True)]

    def _encode_captions(self, captions: Sequence[str]) -> list[dict[str, Tensor]]:
        if not captions:
            return []
        found = self.model.encode_captions(captions)
        return [{n: v[i].cpu() for n, v in found.items()} for i in range(len(captions))]

    def _frame(self, index: int, number: int) -> Framed:
        source = self.examples[index].images[number]
        position = self._position(index)
        return frame(source.read(), self.framing.size, position, source.name)

    def _key(self, index: int, number: int) -> bytes:
        """What the picture's latents depend on beside the encoder; read once."""
        at = (index, number)
        if at not in self._keys:
            digest = hashlib.blake2b(digest_size=16)
            digest.update(repr(self._position(index)).encode())
            digest.update(self.examples[index].images[number].read())
            self._keys[at] = digest.digest()
        return self._keys[at]

    def _position(self, index: int) -> tuple[float, float]:
        """Where the example's squares lie: a matter of its content, not its place in the data."""
        if not self.framing.random_crop:
            return MIDDLE
        example = self.examples[index]
        digest = hashlib.blake2b(digest_size=8)
        digest.update(self.framing.seed.to_bytes(8, "little", signed=True))
        digest.update(example.caption.encode())
        digest.update(example.images[0].read())
        low, high = (int.from_bytes(digest.digest()[k : k + 4], "little") for k in (0, 4))
        return low / 2**32, high / 2**32


def cache_folder(setting: str | None) -> Path | None:
    """Where encodings are kept: as set, or beside Trueline's other caches; None for ``"none"``."""
    if setting == "none":
        return None
    return kept_in("encodings") if setting is None else Path(setting)


def _folders(model: TextToImage, framing: Framing) -> tuple[str, str]:
    """The folders' names: what all entries in them depend on."""
    image = model.image_encoder
    seen = fingerprint_of({} if image is None else {"image": image})
    read = fingerprint_of(model.encoders)
    return f"images-{seen}-{framing.size}{'-flips' if framing.flip else ''}", f"captions-{read}"


def fingerprint_of(parts: Mapping[str, nn.Module]) -> str:
    """One content hash of several models, whichever library their configurations come from."""
    digest = hashlib.blake2b(digest_size=8)
    for name, part in parts.items():
        digest.update(f"{name} {fingerprint(_plain(part), str(_dtype(part)))}".encode())
    return digest.hexdigest()


def _plain(part: nn.Module) -> nn.Module:
    """The part as :func:`fingerprint` reads models: weights, and a configuration it can list."""
    config: Any = getattr(part, "config", {})
    given = config.to_dict() if hasattr(config, "to_dict") else config
    # diffusers' own notes begin with an underscore; one is a set in an order of each process's own
    listed = {key: value for key, value in given.items() if not key.startswith("_")}
    seen = SimpleNamespace(
        config=SimpleNamespace(to_dict=lambda: listed), state_dict=part.state_dict
    )
    return cast(nn.Module, seen)


def _dtype(part: nn.Module) -> torch.dtype | None:
    return next((p.dtype for p in part.parameters()), None)


def _caption_key(caption: str) -> bytes:
    return hashlib.blake2b(caption.encode(), digest_size=16).digest()


def _rank() -> int:
    return dist.get_rank() if world_size() > 1 else 0


def _chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (items[k : k + size] for k in range(0, len(items), size))


def _stack(rows: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]} if rows else {}
