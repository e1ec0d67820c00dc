"""Which model it is: an id of all its bits, by which its log-probs and answers are kept.

An id depends on content alone. A model loaded from a folder, from the hub or trained a moment ago
has the same id where configuration, tensor names, shapes, types and every bit agree, on any device
and however it is spread over processes. Only where a model's weights are in no reach of torch
(vLLM) do its files stand for it, with an id of their own kind.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from trueline.errors import UserError
from trueline.files import cache_folder, checksum, write_json

VERSION = "w2"
"""How ids are made; it begins each, so that what an earlier release kept is not taken for its own.

``w1``, whose ids were bare, read 512 values of each tensor.
"""

BLOCK = 512
"""Words of 8 bytes that are reduced to 16 bytes."""

CPU_SLAB, DEVICE_SLAB = 1 << 15, 1 << 24
"""Words reduced at a time, for each thread of a processor (they stay in its cache) and elsewhere;
the id does not depend on them."""

_NOISE = (
    "_name_or_path",
    "architectures",
    "transformers_version",
    "dtype",
    "torch_dtype",
    "use_cache",
)
"""What a configuration says of its file, of the release that wrote it or, again, of the weights."""

FILES = {".safetensors", ".bin", ".json", ".jinja", ".gguf", ".model"}


def fingerprint(model: nn.Module, precision: str, *, adapters: bool | str = False) -> str:
    """An id of a model: its configuration and every bit of every tensor.

    Each tensor is reduced on its own device: a block of 512 words x_i of 8 bytes becomes
    sum m_i x_i and sum n_i floor(x_i / 2^32), modulo 2^64, with fixed odd m_i and n_i, and the
    blocks' sums are hashed in their order (BLAKE2). One changed value, two flipped bits and two
    exchanged values always change a sum; any other change goes unseen only where it lies within one
    block, and then with a chance of 2^-32 at worst.

    Sharded tensors (FSDP, ZeRO-3) are gathered one at a time, so all processes have to call; a
    quantized layer's scales count as the tensors of its state.

    Args:
        model: a transformers model, or a PEFT model around one.
        precision: the precision it runs in, part of what its outputs depend on.
        adapters: which adapter's weights and settings belong to it: all (True), as for a model
            that answers; none, as for the base under an adapter; or the one of this name, whose
            name does not count.

    Raises:
        UserError: weights that are not in memory (offloaded to disk).

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> before = fingerprint(layer, "float32")
        >>> layer.weight.data[0, 0].neg_()  # doctest: +SKIP
        >>> before == fingerprint(layer, "float32")  # doctest: +SKIP
        False
    """
    digest = hashlib.blake2b(digest_size=16)
    own: Any = getattr(model, "config", None)
    config: dict[str, Any] = {} if own is None else own.to_dict()
    for noise in _NOISE:
        config.pop(noise, None)
    facts = [config, precision, *_adapter_settings(model, adapters)]
    digest.update(json.dumps(facts, sort_keys=True, default=_plain).encode())
    seen: dict[int, bytes] = {}  # tied weights are read once
    for name, tensor in _tensors(model, adapters):
        if id(tensor) not in seen:
            with _gathered(tensor):
                seen[id(tensor)] = tensor_digest(tensor, name)
        digest.update(f"\n{name} ".encode() + seen[id(tensor)])
    return f"{VERSION}-{digest.hexdigest()}"


def tensor_digest(tensor: Tensor, name: str = "tensor") -> bytes:
    """16 bytes of a tensor's type, shape and all its bits, wherever and however it is kept.

    Example:
        >>> tensor_digest(torch.tensor([0.0])) == tensor_digest(torch.tensor([-0.0]))
        False
        >>> grid = torch.arange(6.0).view(2, 3)
        >>> tensor_digest(grid.T) == tensor_digest(grid.T.contiguous())
        True
    """
    digest = hashlib.blake2b(digest_size=16)
    with torch.no_grad():
        for part in _parts(tensor.detach(), name):
            digest.update(f"{tuple(part.shape)} {part.dtype}".encode())
            for sums in _block_sums(part):
                digest.update(sums)
    return digest.digest()


def _parts(tensor: Tensor, name: str) -> Iterator[Tensor]:
    """The plain, whole tensors that it is made of."""
    if isinstance(tensor, DTensor):
        tensor = tensor.full_tensor()
    if type(tensor) not in (Tensor, nn.Parameter) and hasattr(tensor, "__tensor_flatten__"):
        for inner in tensor.__tensor_flatten__()[0]:  # torchao's quantized tensors
            yield from _parts(getattr(tensor, inner), name)
        return
    if tensor.is_meta:
        raise UserError(
            f"{name} is not in memory (offloaded), so the model cannot be told from others; load "
            "it without device_map or offloading"
        )
    yield tensor


def _block_sums(tensor: Tensor) -> Iterator[bytes]:
    """For each block of 512 words its two sums of 8 bytes, a slab of blocks at a time."""
    data = tensor.contiguous().reshape(-1).view(torch.uint8)
    low, high = (weights.to(data.device) for weights in _WEIGHTS)
    on_cpu = data.device.type == "cpu"
    words = CPU_SLAB * torch.get_num_threads() if on_cpu else DEVICE_SLAB
    for slab in data.split(8 * words) if data.numel() else ():
        short = -slab.numel() % (8 * BLOCK)
        if short:
            slab = nn.functional.pad(slab, (0, short))
        elif slab.storage_offset() % 8 or slab.data_ptr() % 8:
            slab = slab.clone()
        x = slab.view(torch.int64).view(-1, BLOCK)
        sums = torch.stack([(x * low).sum(dim=1), (x >> 32).mul_(high).sum(dim=1)], dim=1)
        yield sums.cpu().numpy().tobytes()


def _make_weights() -> tuple[Tensor, Tensor]:
    """Two rows of odd numbers, the same for ever."""
    stream = hashlib.shake_128(b"trueline fingerprint").digest(2 * 8 * BLOCK)
    words = np.frombuffer(stream, dtype="<i8") | 1
    low, high = torch.from_numpy(words.reshape(2, BLOCK))
    return low, high


_WEIGHTS = _make_weights()


def _tensors(model: nn.Module, adapters: bool | str) -> list[tuple[str, Tensor]]:
    """All that the model's state holds, by the base's own names in alphabetical order."""
    named: list[tuple[str, Tensor]] = []
    for name, tensor in model.state_dict(keep_vars=True).items():
        whose = _adapter_of(model, name)
        if not isinstance(tensor, Tensor) or not (whose is None or adapters in (True, whose)):
            continue
        clean = name.removeprefix("base_model.model.")
        if isinstance(adapters, str) and whose is not None:
            clean = clean.replace(f".{whose}", "", 1)
        named.append((clean.replace(".base_layer.", ".").replace(".original_module.", "."), tensor))
    return sorted(named, key=lambda pair: pair[0])


def _gathered(tensor: Tensor) -> Any:
    """A context in which a parameter that ZeRO-3 has cut up is whole."""
    if not hasattr(tensor, "ds_id"):
        return contextlib.nullcontext()
    return importlib.import_module("deepspeed").zero.GatheredParameters([tensor])


def _adapter_of(model: nn.Module, name: str) -> str | None:
    """The adapter that a tensor belongs to; None for the base's own."""
    names = tuple(getattr(model, "peft_config", {})) or ("default",)
    prefix = getattr(getattr(model, "base_model", None), "prefix", None) or "lora_"
    parts = name.split(".")
    for at, part in enumerate(parts):
        if part.startswith(prefix) or part in ("modules_to_save", "trainable_tokens_delta"):
            return next((whose for whose in parts[at + 1 :] if whose in names), names[0])
    return None


def _adapter_settings(model: nn.Module, adapters: bool | str) -> list[Any]:
    """What scales and shapes the adapters' part of an answer, beside their weights."""
    configs = dict(getattr(model, "peft_config", {})) if adapters else {}
    chosen = [adapters] if isinstance(adapters, str) else sorted(configs)
    settings = []
    for name in chosen:
        own = configs[name].to_dict()
        for noise in ("base_model_name_or_path", "revision", "inference_mode", "peft_version"):
            own.pop(noise, None)
        settings.append(own)
    return settings


def _plain(value: Any) -> Any:
    return sorted(map(str, value)) if isinstance(value, set | frozenset) else str(value)


# --- files ----------------------------------------------------------------------------------------


def files_fingerprint(name: str, revision: str = "main") -> str:
    """An id of a model's files: a folder's, or those of the hub's snapshot in its local cache.

    Every byte counts. A file's hash is kept in Trueline's cache folder by path, size, times and
    inode, so that a file is read once. A hub model without a local snapshot is named by its id and
    revision.

    Args:
        name: a model folder or hub id.
        revision: branch, tag or commit of a hub model.
    """
    folder = Path(name)
    digest = hashlib.blake2b(f"{VERSION} files".encode(), digest_size=16)
    if not folder.is_dir():
        found = _snapshot(name, revision)
        if found is None:
            digest.update(f"{name}@{revision}".encode())
            return f"{VERSION}-files-{digest.hexdigest()}"
        folder = found
    for path in sorted(p for p in folder.iterdir() if p.suffix in FILES and p.is_file()):
        digest.update(f"{path.name} {_file_hash(path)}\n".encode())
    return f"{VERSION}-files-{digest.hexdigest()}"


def _snapshot(name: str, revision: str) -> Path | None:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, local_files_only=True))
    except (OSError, ValueError):
        return None


def _file_hash(path: Path) -> str:
    """A file's checksum, read anew only where the file is not the one that was read."""
    real = path.resolve()
    at = real.stat()
    facts = [str(real), at.st_size, at.st_mtime_ns, at.st_ctime_ns, at.st_ino]
    key = hashlib.blake2b(json.dumps(facts).encode(), digest_size=16).hexdigest()
    kept = cache_folder("files") / f"{key}.json"
    with contextlib.suppress(OSError, ValueError, KeyError):
        return str(json.loads(kept.read_text("utf-8"))["checksum"])
    found = checksum(real)
    if time.time_ns() - at.st_mtime_ns > 2_000_000_000:  # a later write would show in its times
        with contextlib.suppress(OSError):
            write_json(kept, {"file": str(real), "checksum": found})
    return found


# --- several processes ----------------------------------------------------------------------------


def shared_fingerprint(model: nn.Module, precision: str, *, adapters: bool | str = False) -> str:
    """:func:`fingerprint`, one for all processes.

    Where every process has the whole model, the first one's counts: others may have been given
    empty weights to be filled later.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return fingerprint(model, precision, adapters=adapters)
    parameters = list(model.parameters())
    spread = any(isinstance(p, DTensor) or hasattr(p, "ds_id") for p in parameters)
    mine = [None if dist.get_rank() and not spread else "asked"]
    if mine[0] is not None:
        mine = [fingerprint(model, precision, adapters=adapters)]
    dist.broadcast_object_list(mine, src=0)
    return str(mine[0])
