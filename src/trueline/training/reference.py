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
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor, nn

from trueline.batching import Branch, TokenTree, within_budget
from trueline.errors import UserError
from trueline.files import whole
from trueline.scoring import TOKEN_BUDGET, Scorer, evaluating
from trueline.training.coupling import everyones, world_size

log = logging.getLogger(__name__)

SHARD_ROWS = 4096
SHARD_SECONDS = 60.0
"""A shard is written after so many rows or seconds, whichever comes first: what a kill can lose."""


def completion_key(prompt: np.ndarray[Any, Any], branch: Branch) -> bytes:
    """16 bytes that identify a prompt, a completion and its mask by their content."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(len(prompt).to_bytes(8, "little"))
    for part in (prompt.astype(np.int32), branch.ids.astype(np.int32), branch.mask):
        digest.update(np.ascontiguousarray(part).tobytes())
    return digest.digest()


class ReferenceCache:
    """Log-probs by content key, in memory and, given a folder, in append-only shards on disk.

    A shard is one safetensors file with keys (N, 16), offsets (N + 1,) and per-token values; it is
    written under another name and renamed, so that readers and other processes see whole shards
    only. A shard whose checksum fails is set aside with a warning and its rows computed again.

    Args:
        folder: where shards are; None keeps values in memory alone.
        tokens: keep per-token values in memory, too, for token masks that are learned.
    """

    def __init__(self, folder: Path | None, *, tokens: bool = False) -> None:
        self.folder = folder
        self._sums: dict[bytes, float] = {}
        self._tokens: dict[bytes, np.ndarray[Any, Any]] | None = {} if tokens else None
        self._pending: list[tuple[bytes, np.ndarray[Any, Any]]] = []
        self._unshared: dict[bytes, float | np.ndarray[Any, Any]] = {}
        self._written = time.monotonic()
        self._read_folder()

    def __contains__(self, key: bytes) -> bool:
        return key in self._sums

    def __getitem__(self, key: bytes) -> float:
        return self._sums[key]

    def __len__(self) -> int:
        return len(self._sums)

    def add(self, key: bytes, tokens: np.ndarray[Any, Any]) -> None:
        """Keep one completion's per-token log-probs."""
        if key in self._sums:
            return
        total = float(tokens.astype(np.float64).sum())
        self._unshared[key] = total if self._tokens is None else tokens
        self._keep(key, self._unshared[key])
        if self.folder is not None:
            self._pending.append((key, tokens.astype(np.float32)))
            late = time.monotonic() - self._written > SHARD_SECONDS
            if late or len(self._pending) >= SHARD_ROWS:
                self.flush()

    def tokens(self, key: bytes) -> np.ndarray[Any, Any]:
        """One completion's per-token log-probs, of a cache made with ``tokens=True``."""
        assert self._tokens is not None
        return self._tokens[key]

    def _keep(self, key: bytes, value: float | np.ndarray[Any, Any]) -> None:
        if isinstance(value, float):
            self._sums[key] = value
            return
        self._sums[key] = float(value.astype(np.float64).sum())
        if self._tokens is not None:
            self._tokens[key] = value

    def flush(self) -> None:
        """Write what is not on disk yet as one shard."""
        if self.folder is None or not self._pending:
            return
        arrays = {
            "keys": np.stack([np.frombuffer(key, dtype=np.uint8) for key, _ in self._pending]),
            "offsets": np.cumsum([0, *(len(tokens) for _, tokens in self._pending)]),
            "values": np.concatenate([tokens for _, tokens in self._pending]),
        }
        with whole(self.folder / f"{uuid.uuid4().hex}.safetensors") as part:
            save_file(arrays, part, metadata={"checksum": _checksum(arrays)})
        self._pending.clear()
        self._written = time.monotonic()

    def exchange(self) -> None:
        """Give all ranks what each has added since the last exchange."""
        mine, self._unshared = self._unshared, {}
        if world_size() == 1:
            return
        for part in everyones(mine):
            for key, value in part.items():
                self._keep(key, value)

    def _read_folder(self) -> None:
        if self.folder is None or not self.folder.is_dir():
            return
        for path in sorted(self.folder.glob("*.safetensors")):
            self._read(path)

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
        keys = list(map(bytes, arrays["keys"]))
        sums = np.add.reduceat(arrays["values"].astype(np.float64), arrays["offsets"][:-1])
        self._sums.update(zip(keys, sums.tolist(), strict=True))
        if self._tokens is not None:
            pieces = np.split(arrays["values"], arrays["offsets"][1:-1])
            self._tokens.update(zip(keys, pieces, strict=True))


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
        keys = self._known(trees)
        return torch.tensor([self.cache[key] for key in keys], dtype=torch.float32)

    def tokens(self, trees: Sequence[TokenTree]) -> Tensor:
        """(M,) per-token values in tree order; the cache must have been made to keep them."""
        values = np.concatenate([self.cache.tokens(key) for key in self._known(trees)])
        return torch.from_numpy(values.astype(np.float32))

    def _known(self, trees: Sequence[TokenTree]) -> list[bytes]:
        """The completions' keys, all of them in the cache."""
        keys = [key for tree in trees for key in self._keys(tree)]
        if any(key not in self.cache for key in keys):
            self.fill(trees)
        return keys

    def _keys(self, tree: TokenTree) -> list[bytes]:
        seen = tree.for_reference()
        return [completion_key(seen.prompt, branch) for branch in seen.branches]

    def missing(self, trees: Sequence[TokenTree]) -> list[TokenTree]:
        """The trees with at least one completion that is not cached, as the reference sees them."""
        return [trees[index].for_reference() for index in self.missing_at(trees)]

    def missing_at(self, trees: Sequence[TokenTree]) -> list[int]:
        """Where those trees are."""
        return [
            index
            for index, tree in enumerate(trees)
            if any(key not in self.cache for key in self._keys(tree))
        ]

    def fill(
        self, trees: Sequence[TokenTree], progress: Callable[[int], None] | None = None
    ) -> None:
        """Score what is missing, in batches of about ``TOKEN_BUDGET`` tokens.

        Where ranks go ``together``, each must call this with its own trees at the same time; one
        with less to do than another goes on with a short tree, whose values it has twice.
        """
        batches = list(within_budget(self.missing(trees), TOKEN_BUDGET))
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
            for key in self._keys(tree):
                self.cache.add(key, next(pieces))
