"""Images from bytes to the model's input, and into grids: decoded, cropped and flipped alike."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trueline.errors import UserError, cause


class CorruptImageError(UserError):
    """Bytes that are no image; the message names where they come from."""


@dataclass(frozen=True)
class Framed:
    """A square piece of an image.

    Args:
        pixels: (3, S, S) in [-1, 1].
        original: height and width before resizing.
        corner: top and left of the piece in the resized image.
        right: pixels of the resized image to the right of the piece.
    """

    pixels: Tensor
    original: tuple[int, int]
    corner: tuple[int, int]
    right: int = 0

    def flipped(self) -> Framed:
        """What the same frame would be, had the image been mirrored first."""
        corner = (self.corner[0], self.right)
        return Framed(self.pixels.flip(-1), self.original, corner, self.corner[1])


def pillow() -> Any:
    """PIL.Image.

    Raises:
        UserError: it is not installed.
    """
    try:
        from PIL import Image
    except ImportError:
        raise UserError("images need the extra: pip install 'trueline[diffusion]'") from None
    return Image


def frame(data: bytes, size: int, position: tuple[float, float], place: str) -> Framed:
    """Decode, resize the shorter side to ``size`` and cut a square out.

    Args:
        data: an image file's bytes.
        size: S, pixels.
        position: where the square lies along height and width, each in [0, 1]; (.5, .5) is the
            middle. Both images of a pair are given the same.
        place: what to call it in an error.

    Raises:
        CorruptImageError: the bytes are no whole image.
    """
    image = decode(data, place)
    width, height = image.size
    scale = size / min(width, height)
    wide, high = max(size, round(width * scale)), max(size, round(height * scale))
    if (wide, high) != (width, height):
        image = image.resize((wide, high), pillow().Resampling.LANCZOS)
    top, left = round(position[0] * (high - size)), round(position[1] * (wide - size))
    piece = image.crop((left, top, left + size, top + size))
    return Framed(to_pixels(piece), (height, width), (top, left), wide - size - left)


def decode(data: bytes, place: str) -> Any:
    """An RGB image from a file's bytes; transparency on white.

    Raises:
        CorruptImageError: the bytes are no whole image, or its white is not known.
    """
    library = pillow()
    try:
        image = library.open(io.BytesIO(data))
        image.load()
        return _in_color(image)
    except MemoryError:  # the machine's fault, not the file's
        raise
    except Exception as error:  # its decoders raise a dozen unrelated kinds
        why = cause(error)
        if isinstance(error, sys.modules["PIL"].UnidentifiedImageError):
            why = f"{len(data):,} bytes of no format that Pillow knows"
        raise CorruptImageError(f"{place} is no readable image: {why}") from error


def _in_color(image: Any) -> Any:
    """As RGB; Pillow would cut 16 bits of gray off at 255, so that nearly all is white."""
    library = pillow()
    if image.mode.startswith("I;16"):
        image = library.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode} do not say what is white; save 8 bits")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        ground = library.new("RGBA", image.size, (255, 255, 255, 255))
        image = library.alpha_composite(ground, image)
    return image.convert("RGB")


def to_pixels(image: Any) -> Tensor:
    """(3, H, W) in [-1, 1]."""
    array = np.asarray(image, dtype=np.float32) / 127.5 - 1
    return torch.from_numpy(array).permute(2, 0, 1).contiguous()


def to_image(pixels: Tensor) -> Any:
    """An image from (3, H, W) in [-1, 1]; what lies outside is clipped."""
    array = ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().byte()
    return pillow().fromarray(array.permute(1, 2, 0).cpu().numpy())


def png(image: Any, *, at_least: int = 0) -> bytes:
    """A PNG file's bytes; tiny pictures are enlarged, pixel by pixel, to ``at_least`` pixels."""
    side = min(image.size)
    if side < at_least:
        factor = -(-at_least // side)
        size = (image.width * factor, image.height * factor)
        image = image.resize(size, pillow().Resampling.NEAREST)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def grid(images: Sequence[Any], columns: int, *, gap: int = 2) -> Any:
    """One picture of many, row by row on white; all of the first one's size."""
    if not images:
        raise UserError("there is no image to put on a grid")
    width, height = images[0].size
    rows = -(-len(images) // columns)
    page = pillow().new(
        "RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white"
    )
    for index, image in enumerate(images):
        y, x = divmod(index, columns)
        page.paste(image.resize((width, height)), (x * (width + gap), y * (height + gap)))
    return page
