"""How encodings are kept, what they come to, and the names of the folders they lie in."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import nn

from trueline.diffusion.data.frames import Framing
from trueline.diffusion.models.families import TextToImage
from trueline.files import cache_folder as kept_in
from trueline.models.fingerprint import fingerprint


@dataclass(frozen=True)
class Keeping:
    """How encodings are kept.

    Args:
        folder: where; None keeps them in memory.
        cached: whether at all.
        half: in half precision; float32 otherwise.
        limit: bytes, of all together; what comes after is encoded each time it is drawn.
        batch_size: images, or captions, encoded at once.
        workers: threads that read and resize ahead.
        skip_bad: in the place of an example whose images cannot be read take the next that can.
    """

    folder: Path | None = None
    cached: bool = True
    half: bool = True
    limit: int | None = None
    batch_size: int = 1
    workers: int = 0
    skip_bad: bool = False


@dataclass(frozen=True)
class Estimate:
    """What a run's encodings come to at most, on disk or in memory.

    Args:
        images, captions: how many.
        image_bytes, caption_bytes: of one.
        there: bytes that lie in the cache already.
    """

    images: int
    captions: int
    image_bytes: int
    caption_bytes: int
    there: int = 0

    @property
    def bytes(self) -> int:
        return self.images * self.image_bytes + self.captions * self.caption_bytes

    def __str__(self) -> str:
        return (
            f"at most {self.bytes / 1e9:.3g} GB of encodings: {self.images} images of "
            f"{self.image_bytes / 1e3:.3g} kB, {self.captions} captions of "
            f"{self.caption_bytes / 1e3:.3g} kB"
        )


def cache_folder(setting: str | None) -> Path | None:
    """Where encodings are kept: as set, or beside Trueline's other caches; None for ``"none"``."""
    if setting == "none":
        return None
    return kept_in("encodings") if setting is None else Path(setting)


def folder_names(model: TextToImage, framing: Framing, half: bool) -> tuple[str, str]:
    """The folders' names: what all entries in them depend on."""
    image, kind = model.image_encoder, "half" if half else "float32"
    seen = fingerprint_of({} if image is None else {"image": image})
    read = fingerprint_of(model.encoders)
    return f"images-{seen}-{framing.size}-{kind}", f"captions-{read}-{kind}"


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
