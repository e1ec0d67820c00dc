"""Tensors by content key, in memory or in append-only shards on disk.

A shard is one safetensors file with keys (N, 16) and the named values (N, ...); it is written under
another name and renamed, so that readers and other processes see whole shards only. Values are read
from the mapped file when they are asked for.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from trueline.files import whole

log = logging.getLogger(__name__)

SHARD_BYTES = 256 * 2**20

Values = Mapping[str, Tensor]


class Budget:
    """How many bytes several stores may keep together.

    Args:
        limit: None for any number.

    Example:
        >>> budget = Budget(100)
        >>> budget.take(80), budget.take(30), budget.take(20)
        (True, False, True)
    """

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit
        self.used = 0
        self.refused = 0

    def take(self, size: int) -> bool:
        """Whether there is room for so many more bytes; they are then taken."""
        if self.limit is not None and self.used + size > self.limit:
            if not self.refused:
                log.warning(
                    "cache: the limit of %.3g GB is reached; what comes now is encoded each time "
                    "it is drawn", self.limit / 1e9,
                )  # fmt: skip
            self.refused += 1
            return False
        self.used += size
        return True


class TensorStore:
    """Named tensors of one shape each, by 16-byte key.

    Args:
        folder: where shards lie; None keeps everything in memory.
        shard_bytes: about how large a shard becomes.
        budget: what is added beyond it is not kept.

    Example:
        >>> store = TensorStore(None)
        >>> store.add(bytes(16), {"x": torch.ones(2)})
        >>> store[bytes(16)]["x"].tolist(), len(store)
        ([1.0, 1.0], 1)
    """

    def __init__(
        self,
        folder: Path | None,
        *,
        shard_bytes: int = SHARD_BYTES,
        budget: Budget | None = None,
    ) -> None:
        self.folder = folder
        self.shard_bytes = shard_bytes
        self.budget = budget or Budget()
        self.bytes = 0
        self._memory: dict[bytes, Values] = {}
        self._places: dict[bytes, tuple[Any, int]] = {}
        self._read: set[Path] = set()
        self._size = 0
        self.refresh()

    def __contains__(self, key: bytes) -> bool:
        return key in self._memory or key in self._places

    def __len__(self) -> int:
        return len(self._memory.keys() | self._places.keys())

    def __getitem__(self, key: bytes) -> Values:
        if key in self._memory:
            return self._memory[key]
        shard, row = self._places[key]
        return {name: shard.get_slice(name)[row] for name in shard.keys() if name != "keys"}  # noqa: SIM118

    def add(self, key: bytes, values: Values) -> None:
        """Keep one entry; with a folder, a shard is written whenever enough have come together."""
        if key in self:
            return
        # a clone: a row of a batch would keep the whole batch in memory
        kept = {name: value.detach().cpu().clone() for name, value in values.items()}
        size = sum(value.nbytes for value in kept.values())
        if not self.budget.take(size):
            return
        self._memory[key] = kept
        self._size += size
        self.bytes += size
        if self.folder is not None and self._size >= self.shard_bytes:
            self.flush()

    def flush(self) -> None:
        """Write what is not on disk yet as one shard, and let go of its memory."""
        if self.folder is None or not self._memory:
            return
        keys = list(self._memory)
        flat = b"".join(keys)
        tensors = {"keys": torch.frombuffer(bytearray(flat), dtype=torch.uint8).view(-1, 16)}
        for name in self._memory[keys[0]]:
            tensors[name] = torch.stack([self._memory[key][name] for key in keys])
        file = f"{uuid.uuid4().hex}.safetensors"
        with whole(self.folder / file) as part:
            save_file(tensors, part, metadata={"keys": _checksum(flat)})
        self._open(self.folder / file, mine=True)
        self._memory.clear()
        self._size = 0

    def refresh(self) -> None:
        """Take in shards that this or another process has written since."""
        if self.folder is None or not self.folder.is_dir():
            return
        for path in sorted(set(self.folder.glob("*.safetensors")) - self._read):
            self._open(path)

    def _open(self, path: Path, *, mine: bool = False) -> None:
        self._read.add(path)
        try:
            shard = safe_open(path, framework="pt")
            keys = shard.get_tensor("keys").numpy()
            if (shard.metadata() or {}).get("keys") != _checksum(keys.tobytes()):
                raise ValueError("checksum does not match")
        except PermissionError as error:
            log.warning(
                "cache: %s may not be read (%s); its entries are computed again", path, error
            )
            return
        except (OSError, ValueError, SafetensorError) as error:
            log.warning("cache: %s is damaged (%s); its entries are computed again", path, error)
            with contextlib.suppress(OSError):
                path.rename(path.with_suffix(".damaged"))
            return
        self._places.update((bytes(key), (shard, row)) for row, key in enumerate(keys))
        if not mine:  # otherwise they were counted when they came
            size = path.stat().st_size
            self.bytes += size
            self.budget.used += size


def free_bytes(folder: Path) -> int:
    """Room on the disk that a folder, which need not exist yet, lies on."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(there).free


def _checksum(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
