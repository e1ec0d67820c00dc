"""Responses as vectors: by the policy itself, by a sentence-embedding model, or from a file.

Vectors of the first two are kept on disk by content, so that another selection of the same data, or
an interrupted one, computes none of them again.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np

from trueline.curation.jobs.chunks import Chunk
from trueline.curation.jobs.disk import DiskTable, digest
from trueline.curation.near import flat
from trueline.errors import UserError
from trueline.processes import rank
from trueline.records import Completion, Example

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


Array: TypeAlias = np.ndarray[Any, Any]
Vectors: TypeAlias = Callable[[Chunk], Sequence[Array]]
"""A chunk's vectors: one (n, d) array for each example with n completions."""


class Embedder(Protocol):
    """Turns responses into vectors.

    ``identity`` names everything the vectors depend on beside the text. An embedder that sees the
    prompt, too, says so with ``context``.
    """

    identity: str
    context: bool

    def __call__(self, examples: Sequence[Example]) -> Array:
        """(N, d) float32, one row for each completion of the examples in turn."""
        ...


class PolicyEmbedder:
    """The frozen model that is to be aligned: the mean of its last hidden layer over the response.

        v(y) = 1/|y| sum_t h_t,  t over the response's tokens; BOS and prompt are never counted

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        max_length: tokens of a response that are read.
        context: let the response attend to its prompt (at most as many tokens again, from the
            left). The paper embeds the response alone.
        batch_size: responses in a forward pass; they are sorted by length first.

    Source: "REAL: Response Embedding-based Alignment for LLMs"; HH-RLHF is read up to 512 tokens.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int = 512,
        context: bool = False,
        batch_size: int = 32,
    ) -> None:
        from trueline.batching import Encoder
        from trueline.models.fingerprint import fingerprint

        if max_length < 1:
            raise UserError(f"max_length must be at least 1 token, got {max_length}")
        self.model, self.tokenizer = model, tokenizer
        self.max_length, self.context, self.batch_size = max_length, context, batch_size
        self.encode = Encoder(tokenizer, max_length=None)
        vocabulary = digest(sorted(tokenizer.get_vocab()), tokenizer.chat_template).hex()
        weights = fingerprint(model, str(model.dtype), adapters=True)
        self.identity = f"policy {weights} {vocabulary} {max_length} {context}"

    def __call__(self, examples: Sequence[Example]) -> Array:
        """(N, d) float32."""
        import torch

        from trueline.prompts import batches_by_length, pad
        from trueline.scoring import evaluating

        rows = [row for example in examples for row in self._rows(example)]
        found: list[Array] = [np.zeros(0)] * len(rows)
        causal = self.model.get_base_model() if hasattr(self.model, "peft_config") else self.model
        body = getattr(causal, causal.base_model_prefix)
        with torch.inference_mode(), evaluating(self.model):
            for batch in batches_by_length([len(ids) for ids, _ in rows], self.batch_size):
                ids, mask = pad([rows[i][0] for i in batch], fill=0, left=False)
                counted, _ = pad([rows[i][1] for i in batch], fill=0, left=False)
                device = self.model.device
                hidden = body(
                    input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False
                ).last_hidden_state.float()
                weight = counted.to(device)[:, :, None].float()
                mean = (hidden * weight).sum(dim=1) / weight.sum(dim=1)
                for i, vector in zip(batch, mean.cpu().numpy(), strict=True):
                    found[i] = vector
        return np.stack(found)

    def _rows(self, example: Example) -> Iterator[tuple[list[int], list[int]]]:
        """Each completion's ids, and a mask of those that are the response's."""
        if self.context:
            tree = self.encode(example)
            before = tree.prompt.tolist()
            before = before[:1] + before[1:][-self.max_length :]
            for branch in tree.branches:
                ids = branch.ids.tolist()[: self.max_length]
                mask = branch.mask.tolist()[: self.max_length]
                yield before + ids, [0] * len(before) + [int(scored) for scored in mask]
            return
        for completion in example.completions:
            ids = self.encode.renderer.prompt_ids(flat(completion.content))
            start = int(len(ids) > 1 and ids[0] == self.tokenizer.bos_token_id)
            ids = ids[: self.max_length + start]
            yield ids, [0] * start + [1] * (len(ids) - start)


class SentenceEmbedder:
    """A sentence-embedding model (the extra ``embed``); it reads the response alone.

    Args:
        model: a folder or a hub id. Code that comes with a model is never run.
        batch_size: responses in a forward pass.

    Raises:
        UserError: the extra is missing, or there is no such model.
    """

    context = False

    def __init__(self, model: str, *, batch_size: int = 64, device: str | None = None) -> None:
        from trueline.models import sentence_encoder
        from trueline.models.fingerprint import fingerprint

        self.model = sentence_encoder(model, device=device)
        self.batch_size = batch_size
        length = self.model.max_seq_length
        self.identity = f"sentence {fingerprint(self.model, 'float32')} {length}"

    def __call__(self, examples: Sequence[Example]) -> Array:
        """(N, d) float32."""
        texts = [flat(c.content) for example in examples for c in example.completions]
        found = self.model.encode(
            texts, batch_size=self.batch_size, show_progress_bar=False, convert_to_numpy=True
        )
        return np.asarray(found, dtype=np.float32)


class Precomputed:
    """Vectors from a ``.npy`` file, read where needed: row i belongs to the i-th completion.

    Raises:
        UserError: the file is no two-dimensional array of numbers, or has too few rows.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self.array = np.load(self.path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{path}: not a .npy array of vectors ({error})") from None
        if getattr(self.array, "ndim", 0) != 2 or self.array.dtype.kind != "f":
            raise UserError(f"{path}: expected a 2-D array of floats, one row a completion")
        if not self.array.flags.c_contiguous:
            raise UserError(f"{path}: the array is in Fortran order; save np.ascontiguousarray(it)")
        self.width = self.array.shape[1]

    def __call__(self, chunk: Chunk) -> list[Array]:
        """Each example's (n, d) vectors."""
        sizes = [len(example.completions) for example in chunk.examples]
        start, end = chunk.completions_before, chunk.completions_before + sum(sizes)
        if end > len(self.array):
            raise UserError(
                f"{self.path}: {len(self.array)} vectors, and the data has more completions; give "
                "one row for each completion, in their order"
            )
        rows = np.fromfile(
            self.path, self.array.dtype, (end - start) * self.width, offset=self.start(start)
        )
        return np.split(rows.reshape(-1, self.width), np.cumsum(sizes)[:-1])

    def start(self, row: int) -> int:
        """The file's byte where a row begins. Reading leaves no pages of the file in memory, as
        the map does, so that memory stays the same however large the file is."""
        return int(self.array.offset + row * self.width * self.array.itemsize)

    def check_all_used(self, completions: int) -> None:
        """Raise where the file has vectors for more completions than there are."""
        if completions != len(self.array):
            raise UserError(
                f"{self.path}: {len(self.array)} vectors for {completions} completions; give one "
                "row for each completion, in their order (rows left out have none)"
            )


log = logging.getLogger(__name__)


class Cached:
    """An embedder's vectors, each computed once and kept in a folder by content.

    Each rank writes a file of its own and reads all of them, so no two processes wait for each
    other. A damaged file is set aside with a warning and its vectors are computed again.
    """

    def __init__(self, embedder: Embedder, folder: Path | None) -> None:
        self.embedder = embedder
        self.tables = [DiskTable()] if folder is None else _open(folder)
        self.hits = 0

    def __call__(self, chunk: Chunk) -> list[Array]:
        """Each example's (n, d) vectors."""
        keys = [self._key(e, c) for e in chunk.examples for c in e.completions]
        found: dict[bytes, bytes] = {}
        for table in self.tables:
            missing = [key for key in keys if key not in found]
            values = table.get(missing)
            found |= {k: v for k, v in zip(missing, values, strict=True) if v is not None}
        self.hits += sum(key in found for key in keys)
        todo: dict[bytes, Example] = {}
        for example in chunk.examples:
            for completion in example.completions:
                key = self._key(example, completion)
                if key not in found and key not in todo:
                    todo[key] = Example(example.prompt, (completion,), id=example.id)
        if todo:
            vectors = np.ascontiguousarray(self.embedder(list(todo.values())), dtype=np.float32)
            new = {key: row.tobytes() for key, row in zip(todo, vectors, strict=True)}
            self.tables[0].put(new.items())
            found |= new
        flatly = iter([np.frombuffer(found[key], dtype=np.float32) for key in keys])
        return [np.stack([next(flatly) for _ in e.completions]) for e in chunk.examples]

    def _key(self, example: Example, completion: Completion) -> bytes:
        prompt = example.prompt if self.embedder.context else None
        return digest(self.embedder.identity, prompt, completion.content)


def _open(folder: Path) -> list[DiskTable]:
    """This rank's table first, then those of other ranks."""
    folder.mkdir(parents=True, exist_ok=True)
    own = folder / f"vectors-{rank()}.sqlite"
    others = [path for path in sorted(folder.glob("vectors-*.sqlite")) if path != own]
    tables = []
    for path in (own, *others):
        try:
            tables.append(DiskTable(path))
        except sqlite3.DatabaseError as error:
            log.warning("embedding cache: %s is damaged (%s); computed anew", path, error)
            with suppress(OSError):
                path.rename(path.with_suffix(".damaged"))
            if path == own:
                tables.append(DiskTable(path))
    return tables
