"""Rows are encoded once: in batches, by several processes, kept by content and found again.

Rows are taken in shards of ``SHARD``. A shard's file is named by its rows and by all that ids
depend on (tokenizer, template, options, the code that makes them), so a pass that was cut off goes
on where it stopped, data that grew are encoded where they grew, and processes that encode the same
rows at once write the same files. Rows that a name stands for (a file's checksum) are not even read
again.
"""

from __future__ import annotations

import hashlib
import inspect
import io
import itertools
import json
import logging
import multiprocessing
import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa

from trueline.batching.arrow import DamagedError, Shard, Trees
from trueline.batching.encode import Encoder
from trueline.batching.trees import TokenTree, View, view
from trueline.errors import UserError
from trueline.files import read_json, write_json
from trueline.records import Example

log = logging.getLogger(__name__)

SHARD = 4096
"""Rows in a shard: what a kill can cost, for each process. Fewer rows in all are not kept on disk:
encoding them again is a matter of seconds."""
BATCH = 512
"""Rows that the tokenizer is asked about at once."""
After: TypeAlias = Callable[[TokenTree], TokenTree]


@dataclass(frozen=True)
class Recipe:
    """What becomes of a row, and all that it depends on.

    Args:
        encoder: makes token trees.
        layout: which views of them are trained on.
        after: changes each view at the end (a token mask); a function of a module.
    """

    encoder: Encoder
    layout: View
    after: After | None = None
    _key: list[str] = field(default_factory=list, repr=False, compare=False)

    @property
    def key(self) -> str:
        """32 hexadecimal digits: tokenizer, template, options, and the code that makes ids."""
        if not self._key:
            facts = [
                self.encoder.options, self.layout, tokenizer_digest(self.encoder.tokenizer),
                {name: metadata.version(name) for name in ("tokenizers", "transformers")},
                _code(self.after),
            ]  # fmt: skip
            text = json.dumps(facts, sort_keys=True, default=str)
            self._key.append(hashlib.blake2b(text.encode(), digest_size=16).hexdigest())
        return self._key[0]

    def shard(self, examples: Sequence[Example]) -> Shard:
        """Some rows as a shard, which says what was told of them.

        Raises:
            UserError: a row that the template, or the layout, cannot take.
        """
        encoder = self.encoder.fresh()
        trees: list[TokenTree] = []
        for start in range(0, len(examples), BATCH):
            batch = examples[start : start + BATCH]
            for example, tree in zip(batch, encoder.many(batch), strict=True):
                trees.extend(view(example, tree, self.layout))
        if self.after is not None:
            trees = [self.after(tree) for tree in trees]
        return Shard.of(trees, {"told": encoder.told.to_dict()})


def encoded(
    examples: Iterable[Example],
    recipe: Recipe,
    *,
    folder: Path | None = None,
    name: Any = None,
    about: Callable[[], Mapping[str, Any]] = dict,
    processes: int = 1,
    check: bool = True,
    progress: Callable[[int], None] | None = None,
) -> Trees:
    """The rows' token trees; ``recipe.encoder.told`` says what became of them.

    Args:
        examples: the rows, read once or, where ``name`` finds them, not at all.
        recipe: what becomes of a row.
        folder: where shards are kept; None keeps them in memory.
        name: JSON-ready data that stands for the rows, whole and in order (their file's checksum
            and how it is read); None where only the rows themselves can tell.
        about: told when all rows have been read, and kept with them; see ``Trees.about``.
        processes: how many encode at once.
        check: whether the checksums of kept shards are compared.
        progress: told how many more rows are done.

    Raises:
        UserError: a row that the template, or the layout, cannot take.
    """
    index = None if folder is None or name is None else _index(folder / recipe.key, name)
    trees = None if index is None else _found(index, check)
    if trees is None:
        batches = _batched(examples)
        first = list(itertools.islice(batches, 2))
        if len(first) < 2:
            folder = index = None
            processes = 1
        place = None if folder is None else folder / recipe.key
        every = itertools.chain(first, batches)
        made = list(_shards(every, recipe, place, processes, check, progress))
        trees = Trees([shard for _, shard in made])
        trees.about = dict(about())
        if index is not None:
            files = [file for file, _ in made]
            write_json(index, {"shards": files, "content": trees.content, "about": trees.about})
    for shard in trees.shards:
        recipe.encoder.told.take(shard.facts["told"])
    return trees


def _batched(examples: Iterable[Example]) -> Iterator[list[Example]]:
    stream = iter(examples)
    while batch := list(itertools.islice(stream, SHARD)):
        yield batch


def _shards(
    batches: Iterable[list[Example]],
    recipe: Recipe,
    folder: Path | None,
    processes: int,
    check: bool,
    progress: Callable[[int], None] | None,
) -> Iterator[tuple[str, Shard]]:
    """Each batch's shard in order, with its file's name; those that are kept are opened."""
    with _Workers(recipe, processes) as workers:
        waiting: deque[tuple[str, int, Shard | Future[Any]]] = deque()

        def next_one() -> tuple[str, Shard]:
            file, rows, made = waiting.popleft()
            shard = made if isinstance(made, Shard) else _received(made, folder, file)
            if progress is not None:
                progress(rows)
            return file, shard

        for batch in batches:
            file = "" if folder is None else f"{rows_digest(batch)}.arrow"
            kept = None if folder is None else _kept(folder / file, check)
            made = kept or workers.start(batch, None if folder is None else folder / file)
            waiting.append((file, len(batch), made))
            while len(waiting) > (2 * processes if processes > 1 else 0):
                yield next_one()
        while waiting:
            yield next_one()


def _received(made: Future[Any], folder: Path | None, file: str) -> Shard:
    try:
        data = made.result()
    except BrokenProcessPool:
        raise UserError(
            "a process that encodes rows has ended before its time. A script of your own has to "
            "stand under `if __name__ == '__main__':` where dataset_num_proc is above 1; else "
            "there was too little memory: set dataset_num_proc to less"
        ) from None
    if folder is not None:
        return Shard.open(folder / file, check=False)
    return Shard(pa.ipc.open_file(data).get_batch(0))


class _Workers:
    """Encodes here, or in processes that import Trueline anew: none is forked from one that has
    threads or a GPU."""

    def __init__(self, recipe: Recipe, processes: int) -> None:
        if processes < 1:
            raise UserError(f"dataset_num_proc must be at least 1, got {processes}")
        self.recipe, self.processes = recipe, processes
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> _Workers:
        return self

    def start(self, batch: list[Example], path: Path | None) -> Shard | Future[Any]:
        """Begin with some rows."""
        if self.processes == 1:
            shard = self.recipe.shard(batch)
            if path is None:
                return shard
            shard.write(path)
            return Shard.open(path, check=False)
        if self._pool is None:
            self._pool = ProcessPoolExecutor(
                self.processes, multiprocessing.get_context("spawn"), _begin, (self.recipe,)
            )
        return self._pool.submit(_work, batch, path)

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


_recipe: list[Recipe] = []
"""A worker's."""


def _begin(recipe: Recipe) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are what is parallel
    _recipe[:] = [recipe]


def _work(batch: list[Example], path: Path | None) -> bytes | None:
    shard = _recipe[0].shard(batch)
    if path is not None:
        shard.write(path)
        return None
    sink = io.BytesIO()
    shard.into(sink)
    return sink.getvalue()


# --- what is kept ---------------------------------------------------------------------------------


def _kept(path: Path, check: bool) -> Shard | None:
    """A shard that was kept and is whole."""
    if not path.exists():
        return None
    try:
        return Shard.open(path, check=check)
    except DamagedError as error:
        log.warning("encoded rows: %s is damaged (%s); its rows are encoded again", path, error)
    except OSError as error:  # unreadable is not damaged: it may be another user's
        log.warning("encoded rows: %s cannot be read (%s); encoded again", path, error)
    return None


def _index(folder: Path, name: Any) -> Path:
    """Where it stands which shards a name's rows are."""
    text = json.dumps(name, sort_keys=True, default=str)
    return folder / f"{hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}.json"


def _found(index: Path, check: bool) -> Trees | None:
    """The trees of rows that were encoded before, all of them whole."""
    if not index.exists():
        return None
    try:
        facts = read_json(index, "its rows are read again")
        kept = [_kept(index.parent / str(file), check) for file in facts["shards"]]
        trees = Trees([shard for shard in kept if shard is not None], str(facts["content"]))
        trees.about = dict(facts["about"])
    except (UserError, KeyError, TypeError) as error:
        log.warning("encoded rows: %s", error)
        return None
    return trees if None not in kept else None


def rows_digest(examples: Sequence[Example]) -> str:
    """32 hexadecimal digits of some rows by their content and places."""
    digest = hashlib.blake2b(digest_size=16)
    for example in examples:
        digest.update(repr(example).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def tokenizer_digest(tokenizer: Any) -> str:
    """32 hexadecimal digits of all that a tokenizer saves: vocabulary, template, settings."""
    digest = hashlib.blake2b(f"{type(tokenizer).__name__}\n".encode(), digest_size=16)
    with tempfile.TemporaryDirectory() as name:
        tokenizer.save_pretrained(name)
        for path in sorted(path for path in Path(name).rglob("*") if path.is_file()):
            digest.update(f"{path.relative_to(name)}\n".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _code(after: After | None) -> str:
    """A digest of the modules that make ids: what another release, or an edit, makes anew."""
    here = Path(__file__).parent
    files = [*sorted(here.rglob("*.py")), *sorted((here.parent / "prompts").rglob("*.py"))]
    if after is not None:
        files.append(Path(inspect.getfile(after)))
    digest = hashlib.blake2b(digest_size=16)
    for path in files:
        digest.update(path.read_bytes())
    return digest.hexdigest()
