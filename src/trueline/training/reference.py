"""Reference log-probs: computed once for each prompt and completion, kept by content.

The key is what the value depends on and nothing else: the reference's weights and configuration,
the precision, the prompt's and completion's token ids and the completion mask. Learning rate,
seed, output folder and LoRA settings cannot make it miss, and nothing that matters can make it
hit wrongly.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import logging
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor, nn

from trueline.batching import TokenTree, Trees, within_budget
from trueline.batching.arrow import keys_of
from trueline.errors import UserError
from trueline.files import whole
from trueline.scoring import TOKEN_BUDGET, Scorer, evaluating
from trueline.training.coupling import everyones, process, world_size
from trueline.training.sums import Sums, read_keys, write_keys

log = logging.getLogger(__name__)

SHARD_ROWS = 4096
SHARD_SECONDS = 60.0
"""A shard is written after so many rows or seconds, whichever comes first: what a kill can lose."""
INDEX, INDEXED = "index.npy", 16 * SHARD_ROWS
"""All sums in one memory-mapped file, written where so many are new; then shards are not read."""
Values: TypeAlias = np.ndarray[Any, Any]


class ReferenceCache:
    """Log-probs by content key: sums in columns, per-token values in append-only shards on disk.

    A shard is one safetensors file with keys (N, 16), offsets (N + 1,) and per-token values; it is
    written under another name and renamed, so that readers and other processes see whole shards
    only. A shard whose checksum fails is set aside with a warning and its rows computed again.

    Args:
        folder: where shards are; None keeps values in memory alone.
        tokens: keep per-token values in memory, too, for token masks that are learned.
    """

    def __init__(self, folder: Path | None, *, tokens: bool = False) -> None:
        self.folder = folder
        self._sums = Sums()
        self._recent: dict[bytes, float] = {}
        self._tokens: dict[bytes, Values] | None = {} if tokens else None
        self._pending: list[tuple[bytes, Values]] = []
        self._unshared: list[tuple[Values, Values]] = []
        self._written = time.monotonic()
        self._files: list[str] = []
        self._read_folder()

    def __contains__(self, key: bytes) -> bool:
        return key in self._recent or bool(self._sums.find(_array([key]))[0][0])

    def __getitem__(self, key: bytes) -> float:
        known, values = self.find(_array([key]))
        if not known[0]:
            raise KeyError(key)
        return float(values[0])

    def __len__(self) -> int:
        self._settle()
        return len(self._sums)

    def find(self, keys: Values) -> tuple[Values, Values]:
        """Which of the (C, 2) keys are kept, and their sums; 0 for the others."""
        self._settle()
        return self._sums.find(keys)

    def add(self, key: bytes, tokens: Values) -> None:
        """Keep one completion's per-token log-probs."""
        if key in self:
            return
        self._recent[key] = float(tokens.astype(np.float64).sum())
        if self._tokens is not None:
            self._tokens[key] = tokens
        if self.folder is not None:
            self._pending.append((key, tokens.astype(np.float32)))
            late = time.monotonic() - self._written > SHARD_SECONDS
            if late or len(self._pending) >= SHARD_ROWS:
                self.flush()

    def tokens(self, key: bytes) -> Values:
        """One completion's per-token log-probs, of a cache made with ``tokens=True``."""
        assert self._tokens is not None
        return self._tokens[key]

    def holds(self, name: str | None) -> bool:
        """Whether a list of keys was kept under a name, and all of them are here."""
        if self.folder is None or name is None:
            return False
        try:
            keys = read_keys(self.folder / f"{name}.keys")
        except (OSError, ValueError):  # there is none, or not a whole one: it is made again
            return False
        starts = range(0, len(keys), 16 * SHARD_ROWS)
        return all(self.find(keys[start : start + 16 * SHARD_ROWS])[0].all() for start in starts)

    def list(self, name: str | None, blocks: Iterable[Values]) -> None:
        """Keep the keys of what is wanted together, for :meth:`holds`; with a name of None, or
        without a folder, only go through them."""
        if self.folder is None or name is None or process():
            deque(blocks, maxlen=0)
        else:
            write_keys(self.folder / f"{name}.keys", blocks)

    def _settle(self) -> None:
        """What was added one by one goes into columns."""
        if not self._recent:
            return
        keys, values = _array(list(self._recent)), np.array(list(self._recent.values()))
        self._sums.add(keys, values)
        if world_size() > 1:
            self._unshared.append((keys, values))
        self._recent = {}

    def flush(self) -> None:
        """Write what is not on disk yet as one shard."""
        if self.folder is None or not self._pending:
            return
        arrays = {
            "keys": np.stack([np.frombuffer(key, dtype=np.uint8) for key, _ in self._pending]),
            "offsets": np.cumsum([0, *(len(tokens) for _, tokens in self._pending)]),
            "values": np.concatenate([tokens for _, tokens in self._pending]),
        }
        name = f"{uuid.uuid4().hex}.safetensors"
        with whole(self.folder / name) as part:
            save_file(arrays, part, metadata={"checksum": _checksum(arrays)})
        self._files.append(name)
        self._pending.clear()
        self._written = time.monotonic()

    def exchange(self) -> None:
        """Give all ranks what each has added since the last exchange, and leave an index for the
        next run where that is worth it."""
        self._settle()
        self.flush()
        if world_size() > 1:
            mine, self._unshared = self._unshared, []
            for added, tokens, files in everyones((mine, self._tokens_of(mine), self._files)):
                for keys, values in added:
                    self._sums.add(keys, values)
                if self._tokens is not None:
                    self._tokens.update(tokens)
                self._files = sorted({*self._files, *files})
        in_memory = sum(
            part.shape[1] for part in self._sums.parts if not isinstance(part, np.memmap)
        )
        if self.folder is not None and in_memory >= INDEXED and process() == 0:
            self._sums.write(self.folder / INDEX, self._files)

    def _tokens_of(self, added: Sequence[tuple[Values, Values]]) -> dict[bytes, Values]:
        """Per-token values of completions that were added, where they are kept in memory."""
        if self._tokens is None:
            return {}
        return {key.tobytes(): self._tokens[key.tobytes()] for keys, _ in added for key in keys}

    def _read_folder(self) -> None:
        if self.folder is None or not self.folder.is_dir():
            return
        there = {path.name for path in self.folder.glob("*.safetensors")}
        if (self.folder / INDEX).exists() and self._tokens is None:
            try:
                read = self._sums.read(self.folder / INDEX)
                if not set(read) <= there:
                    raise ValueError("it speaks of files that are gone")
                self._files = read
            except (OSError, ValueError) as error:
                log.warning("reference cache: %s is not used: %s", self.folder / INDEX, error)
                self._sums, self._files = Sums(), []
        for name in sorted(there - set(self._files)):
            self._read(self.folder / name)

    def _read(self, path: Path) -> None:
        try:
            with safe_open(path, framework="numpy") as shard:
                arrays = {name: shard.get_tensor(name) for name in ("keys", "offsets", "values")}
                checksum = (shard.metadata() or {}).get("checksum")
            if checksum != _checksum(arrays):
                raise ValueError("checksum does not match")
        except OSError as error:  # unreadable is not damaged: it may be another user's
            log.warning("reference cache: %s cannot be read (%s); it is passed over", path, error)
            return
        except (ValueError, SafetensorError) as error:
            log.warning("reference cache: %s is damaged (%s); its rows are recomputed", path, error)
            with contextlib.suppress(OSError):
                path.rename(path.with_suffix(".damaged"))
            return
        keys = np.ascontiguousarray(arrays["keys"]).view("<u8")
        sums = np.add.reduceat(arrays["values"].astype(np.float64), arrays["offsets"][:-1])
        self._sums.add(keys, sums)
        self._files.append(path.name)
        if self._tokens is not None:
            pieces = np.split(arrays["values"], arrays["offsets"][1:-1])
            self._tokens.update(zip(map(bytes, arrays["keys"]), pieces, strict=True))


def _array(keys: Sequence[bytes]) -> Values:
    """(N, 2) uint64 of keys of 16 bytes."""
    found: Values = np.frombuffer(b"".join(keys), dtype="<u8").reshape(-1, 2)
    return found


def _checksum(arrays: dict[str, np.ndarray[Any, Any]]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(arrays):
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()


class Reference:
    """Sums of reference log-probs for token trees, from the cache or from the model.

    Args:
        scorer: scores under the reference (or under the policy, where ``switch`` turns it into
            the reference).
        cache: where values are kept.
        switch: a context inside which the scorer's model is the reference (adapter off).
        autocast: the precision context of the policy, so that log-ratios start at exactly 0.
        moved: says why the scorer is the reference no longer, or None while it is.
        through: the wrapper around the scorer's model to call, once there is one.
        together: whether every rank takes part in every forward pass, as sharded weights ask.
    """

    def __init__(
        self,
        scorer: Scorer,
        cache: ReferenceCache,
        *,
        switch: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext,
        autocast: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext,
    ) -> None:
        self.scorer = scorer
        self.cache = cache
        self.switch = switch
        self.autocast = autocast
        self.moved: str | None = None
        self.through: nn.Module | None = None
        self.together = False

    def __call__(self, trees: Sequence[TokenTree]) -> Tensor:
        """(C,) sums in tree order, float32, on the CPU."""
        return torch.from_numpy(self.cache.find(self._known(trees))[1].astype(np.float32))

    def tokens(self, trees: Sequence[TokenTree]) -> Tensor:
        """(M,) per-token values in tree order; the cache must have been made to keep them."""
        values = np.concatenate([self.cache.tokens(key.tobytes()) for key in self._known(trees)])
        return torch.from_numpy(values.astype(np.float32))

    def _known(self, trees: Sequence[TokenTree]) -> Values:
        """(C, 2) the completions' keys, all of them in the cache."""
        keys = np.concatenate([keys_of(tree) for tree in trees])
        if not self.cache.find(keys)[0].all():
            self.fill(trees)
        return keys

    def missing_at(self, trees: Sequence[TokenTree]) -> Values:
        """The indices of trees with at least one completion that is not cached."""
        found = []
        start = 0
        for shard in Trees.of(trees).shards:
            known, _ = self.cache.find(shard.keys)
            ends = np.cumsum(np.insert(~known, 0, False))[shard.offsets["keys"] // 2]
            found.append(start + np.flatnonzero(np.diff(ends)))
            start += len(shard)
        return np.concatenate(found) if found else np.zeros(0, dtype=np.int64)

    def fill(
        self, trees: Sequence[TokenTree], progress: Callable[[int], None] | None = None
    ) -> None:
        """Score what is missing, in batches of about ``TOKEN_BUDGET`` tokens.

        Where ranks go ``together``, each must call this with its own trees at the same time; one
        with less to do than another goes on with a short tree, whose values it has twice.
        """
        missing = [trees[index].for_reference() for index in self.missing_at(trees).tolist()]
        batches = list(within_budget(missing, TOKEN_BUDGET))
        most = max(everyones(len(batches))) if self.together else len(batches)
        if not most:
            return
        if self.moved:
            raise UserError(f"reference log-probs are missing and {self.moved}")
        shortest = min(trees, key=lambda tree: tree.inputs).for_reference()
        model = self.scorer.model if self.through is None else self.through
        with torch.no_grad(), evaluating(model), self.switch(), self.autocast():
            for batch in itertools.chain(batches, [[shortest]] * (most - len(batches))):
                self._score(batch)
                if progress is not None:
                    progress(len(batch))

    def _score(self, trees: Sequence[TokenTree]) -> None:
        packed = self.scorer.pack(trees)
        tokens = self.scorer(trees, packed, through=self.through).float().cpu().numpy()
        pieces = iter(np.split(tokens, np.cumsum(packed.length.cpu().numpy())[:-1]))
        for tree in trees:
            for key in keys_of(tree):
                self.cache.add(key.tobytes(), next(pieces))
