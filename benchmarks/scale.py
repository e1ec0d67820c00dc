"""Rows and answers by the million: pace and memory beside what others do, into results/scale.json.

    python benchmarks/scale.py encoding restart reference server dedup
    python benchmarks/scale.py restart --rows 10000 100000 1000000

Every line runs in a process of its own. Peers do the same work as they do it: `datasets.map` row by
row as TRL prepares preferences, a Python dictionary of log-probs, a thread pool. Rows are made up;
their texts are words of a small tokenizer unless a model's folder is given (``--tokenizer``).
On a machine that other work shares, processor seconds count; seconds are beside them.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).with_name("results")
WORDS = [f"{a}{b}" for a in "bcdfghklmnprst" for b in ("a", "e", "i", "o", "un", "ar")]


# --- what is worked on ----------------------------------------------------------------------------


def write_rows(path: Path, count: int, words: int) -> None:
    """Preference pairs: a prompt and two answers of about so many words each."""
    if path.exists():
        return
    rng = np.random.default_rng(0)
    with path.open("w") as file:
        for start in range(0, count, 10_000):
            size = min(10_000, count - start)
            picked = rng.integers(0, len(WORDS), (size, 3, words))
            for row in picked.tolist():
                prompt, chosen, rejected = (" ".join(WORDS[k] for k in part) for part in row)
                pair = {"prompt": prompt, "chosen": f" {chosen}", "rejected": f" {rejected}"}
                file.write(json.dumps(pair) + "\n")


def small_tokenizer() -> Any:
    """A word-level tokenizer of the made-up words, with a chat template."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = ["<unk>", "<s>", "</s>", "<pad>", "user", "assistant", ":", *WORDS]
    words = {word: i for i, word in enumerate(names)}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>",
        pad_token="<pad>",
    )  # fmt: skip


def tokenizer_of(options: argparse.Namespace) -> Any:
    if options.tokenizer is None:
        return small_tokenizer()
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(options.tokenizer)


def small_model(tokenizer: Any, width: int = 32) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width,
            num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=512,
            eos_token_id=2, pad_token_id=3,
        )
    )  # fmt: skip


# --- measuring ------------------------------------------------------------------------------------


def status(name: str) -> float:
    """A line of /proc/self/status in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 1024
    return 0.0


class Watched:
    """Seconds, processor seconds (of children too) and memory of what happens inside."""

    def __enter__(self) -> Watched:
        self.before = status("RssAnon")
        self.begun, self.cpu = time.perf_counter(), self._cpu()
        self.figures: dict[str, float] = {}
        return self

    def note(self, what: str) -> None:
        """When something comes first."""
        self.figures.setdefault(what, time.perf_counter() - self.begun)
        self.figures.setdefault(f"{what}, processor", self._cpu() - self.cpu)

    @staticmethod
    def _cpu() -> float:
        own, theirs = (
            resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        )
        return own.ru_utime + own.ru_stime + theirs.ru_utime + theirs.ru_stime

    def __exit__(self, *_: object) -> None:
        self.figures |= {
            "seconds": time.perf_counter() - self.begun,
            "processor seconds": self._cpu() - self.cpu,
            "anonymous MiB": status("RssAnon"),
            "anonymous MiB before": self.before,
            "file MiB": status("RssFile"),
            "peak MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }


def encoding(options: argparse.Namespace) -> dict[str, float]:
    """Rows into token ids by one of: trueline, trueline-rows (one by one), map (as TRL), call (the
    tokenizer alone, asked once for 512 rows' texts)."""
    from trueline.batching import Encoder, Recipe, encoded, view
    from trueline.data import load_examples

    tokenizer = tokenizer_of(options)
    path = options.folder / f"rows-{options.count}-{options.words}.jsonl"
    write_rows(path, options.count, options.words)
    if options.by == "map":
        import datasets

        datasets.disable_progress_bars()
        data = datasets.load_dataset("json", data_files=str(path), split="train",
                                     cache_dir=str(options.folder / "datasets"))  # fmt: skip
        with Watched() as watched:
            data.map(_as_trl, fn_kwargs={"tokenizer": tokenizer}, load_from_cache_file=False,
                     num_proc=options.processes if options.processes > 1 else None)  # fmt: skip
        return watched.figures
    if options.by == "call":
        rows = list(load_examples(path))
        with Watched() as watched:
            for start in range(0, len(rows), 512):
                texts = [text for row in rows[start : start + 512] for text in _texts(row)]
                tokenizer(texts, add_special_tokens=False)
        return watched.figures
    with Watched() as watched:
        if options.by == "trueline-rows":
            encoder = Encoder(tokenizer)
            for example in load_examples(path):
                list(view(example, encoder(example), "paired"))
        else:
            encoded(
                load_examples(path), Recipe(Encoder(tokenizer), "paired"),
                folder=Path(tempfile.mkdtemp(dir=options.folder)), processes=options.processes,
            )  # fmt: skip
    return watched.figures


def _texts(row: Any) -> list[str]:
    """What must be encoded of a row: the prompt, and each answer behind it."""
    return [row.prompt, *(row.prompt + completion.content for completion in row.completions)]


def _as_trl(row: dict[str, str], tokenizer: Any) -> dict[str, list[int]]:
    """TRL 1.16's DPO on plain text: the prompt, and each answer behind it, cut by its length."""
    prompt = tokenizer(row["prompt"])["input_ids"]
    found = {"prompt_ids": prompt}
    for side in ("chosen", "rejected"):
        text = row["prompt"] + row[side] + tokenizer.eos_token
        found[f"{side}_ids"] = tokenizer(text)["input_ids"][len(prompt) :]
    return found


def restart(options: argparse.Namespace) -> dict[str, float]:
    """From a file of rows that was encoded before to the first steps of an epoch over all of them.

    With ``--reference-cache filled`` all that the epoch reads of the reference is kept, too.
    """
    filled = options.folder / f"filled-{options.count}-{options.words}-{options.loss}"
    if options.reference_cache == "filled" and not filled.exists():
        subprocess.run([sys.executable, __file__, "fill", *sys.argv[2:]], check=True)
        filled.touch()
    from trueline import AlignmentConfig, AlignmentTrainer  # noqa: F401  (outside of the time)

    with Watched() as watched:
        trainer = restarted(options, watched)
        watched.note("trainer made")
        trainer.train()
    return watched.figures


def restarted(options: argparse.Namespace, watched: Watched) -> Any:
    """A trainer of one epoch that ends after three steps, and notes when the first one begins."""
    from transformers import TrainerCallback

    from trueline import AlignmentConfig, AlignmentTrainer
    from trueline.data import load_examples

    tokenizer = tokenizer_of(options)
    path = options.folder / f"rows-{options.count}-{options.words}.jsonl"
    write_rows(path, options.count, options.words)
    os.environ["TRUELINE_CACHE"] = str(options.folder / "cache")

    class Note(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            watched.note("first step begins")

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = state.global_step >= 3

    kept = None if options.reference_cache == "filled" else options.reference_cache
    return AlignmentTrainer(
        small_model(tokenizer),
        args=AlignmentConfig(
            output_dir=tempfile.mkdtemp(dir=options.folder), loss_type=options.loss,
            num_train_epochs=1, per_device_train_batch_size=64, save_strategy="no",
            report_to="none", disable_tqdm=True, gradient_checkpointing=False, use_cpu=True,
            dataset_num_proc=options.processes, reference_cache=kept,
            precompute_ref_log_probs=options.loss != "simpo",
        ),
        train_dataset=load_examples(path), processing_class=tokenizer, callbacks=[Note()],
    )  # fmt: skip


def fill(options: argparse.Namespace) -> dict[str, float]:
    """What :func:`restart` finds: rows encoded, and a made-up log-prob of each token that an epoch
    reads of the reference, through the cache's own writer. No model is asked."""
    from trueline.batching import Trees
    from trueline.training.trainer import _blocks

    def kept(dataset: Any) -> Iterator[Any]:
        for trees in map(Trees.of, _blocks(dataset)):
            for shard in trees.shards:
                scored = np.add.reduceat(shard.values["scored"], _starts(shard))
                for key, length in zip(shard.keys, scored.tolist(), strict=True):
                    cache._recent[key.tobytes()] = -float(length)  # as add does with one by one
                    cache._pending.append((key.tobytes(), np.full(length, -1.0, np.float32)))
                cache.flush()
            yield trees.keys

    with Watched() as watched:
        trainer = restarted(options, watched)
        cache = trainer.reference.cache
        for dataset in trainer._read_in_training():
            cache.list(getattr(dataset, "name", None), kept(dataset))
        cache.exchange()
    return watched.figures


def _starts(shard: Any) -> np.ndarray:
    """Where each completion's tokens begin in a shard's."""
    return np.cumsum([0, *shard.values["lengths"].tolist()])[:-1]


def reference(options: argparse.Namespace) -> dict[str, float]:
    """A cache of so many completions: filled, opened again, asked."""
    from trueline.training.reference import ReferenceCache

    rng = np.random.default_rng(0)
    folder = options.folder / f"reference-{options.count}"
    keys = [rng.bytes(16) for _ in range(1000)]
    if options.by == "dictionary":
        with Watched() as watched:
            table = {rng.bytes(16): float(k) for k in range(options.count)}
            table |= dict.fromkeys(keys, 0.0)
        asked = table.__getitem__
    else:
        if not folder.exists():
            cache = ReferenceCache(folder)
            tokens = np.full(64, -1.0, dtype=np.float32)
            for key in keys:
                cache.add(key, tokens)
            for _ in range(options.count - len(keys)):
                cache.add(rng.bytes(16), tokens)
            cache.exchange()
            del cache
        with Watched() as watched:
            cache = ReferenceCache(folder)
        asked = cache.__getitem__
    figures = dict(watched.figures)
    if options.by != "dictionary":
        columns = np.frombuffer(b"".join(keys), dtype="<u8").reshape(-1, 2)
        begun = time.process_time()
        for _ in range(100):
            cache.find(columns)
        figures["look-ups a second, in batches"] = 100_000 / (time.process_time() - begun)
    begun = time.process_time()
    for k in range(10_000):
        asked(keys[k % 1000])
    figures["look-ups a second, one by one"] = 10_000 / (time.process_time() - begun)
    size = sum(path.stat().st_size for path in folder.rglob("*")) if folder.exists() else 0
    return {**figures, "bytes on disk": size}


def dedup(options: argparse.Namespace) -> dict[str, Any]:
    """Near-duplicate prompts of which every tenth is a near copy (``--near 0``: a copy).

    ``--by loop`` compares each prompt with every one kept before it, as sets of its runs of five
    characters; that is a set of prompts where copies are meant. What stays is told by a digest.
    """
    from trueline.curation import dedup as drop
    from trueline.data import load_examples

    path = options.folder / f"near-{options.count}-{options.near}.jsonl"
    if not path.exists():
        write_prompts(path, options.count, bool(options.near))
    output = options.folder / f"distinct-{options.by}.jsonl"
    with Watched() as watched:
        if options.by == "loop":
            with path.open() as file, output.open("w") as kept:
                kept.writelines(line for line in _loop(file, options.near))
        else:
            drop(load_examples(path), output, by="prompt", near=options.near or None,
                 overwrite=True)  # fmt: skip
    prompts = [json.loads(line)["prompt"] for line in output.open()]
    stayed = hashlib.blake2b("\n".join(prompts).encode(), digest_size=8).hexdigest()
    return {**watched.figures, "dropped": options.count - len(prompts), "result": stayed}


def write_prompts(path: Path, count: int, near: bool) -> None:
    """Rows whose every tenth prompt is that before it, with another last word where near."""
    rng = np.random.default_rng(0)
    with path.open("w") as file:
        last: list[str] = []
        for number in range(count):
            words = [WORDS[k] for k in rng.integers(0, len(WORDS), 40)]
            if number % 10 == 9:
                words = [*last[:-1], words[0]] if near else last
            last = words
            row = {"prompt": " ".join(words), "chosen": "yes", "rejected": "no"}
            file.write(json.dumps(row) + "\n")


def _loop(lines: Iterable[str], near: float) -> Iterator[str]:
    kept: list[frozenset[str]] = []
    seen: set[str] = set()
    for line in lines:
        prompt = json.loads(line)["prompt"]
        runs = frozenset(prompt[i : i + 5] for i in range(len(prompt) - 4))
        if prompt in seen or (
            near and any(len(runs & other) >= near * len(runs | other) for other in kept)
        ):
            continue
        seen.add(prompt)
        if near:
            kept.append(runs)
        yield line


def inspect(options: argparse.Namespace) -> dict[str, float]:
    """What is in rows; ``--by loop`` parses the lines, measures and counts repeats with a set."""
    from trueline.data import inspect_examples, load_examples

    path = options.folder / f"rows-{options.count}-{options.words}.jsonl"
    write_rows(path, options.count, options.words)
    with Watched() as watched:
        if options.by == "loop":
            seen: set[str] = set()
            lengths: dict[str, list[int]] = {"prompt": [], "chosen": [], "rejected": []}
            for line in path.open():
                row = json.loads(line)
                seen.add(row["prompt"])
                for side, values in lengths.items():
                    values.append(len(row[side]))
        else:
            inspect_examples(load_examples(path))
    return watched.figures


def local(options: argparse.Namespace) -> dict[str, Any]:
    """Sampled answers of many lengths by a model in memory; ``--by plain`` in plain batches, each
    as long as its longest answer."""
    from trueline.evaluation import generation

    if options.by == "plain":
        generation.can_leave = lambda _: False
    tokenizer = small_tokenizer()
    model = small_model(tokenizer, width=256)
    rng = np.random.default_rng(0)
    prompts = [" ".join(WORDS[k] for k in rng.integers(0, len(WORDS), 8 + n % 24))
               for n in range(options.count)]  # fmt: skip
    with Watched() as watched:
        answers = generation.generate(
            model, tokenizer, prompts, max_new_tokens=256, temperature=1.0, batch_size=32
        )
    tokens = [answer.tokens for answer in answers]
    said = hashlib.blake2b("\n".join(answer.text for answer in answers).encode(), digest_size=8)
    return {**watched.figures, "tokens": sum(tokens), "shortest": min(tokens),
            "longest": max(tokens), "result": said.hexdigest()}  # fmt: skip


# --- a server -------------------------------------------------------------------------------------


async def stub(port: int, latency: float, refused: int, slow: int) -> None:
    """Answers after ``latency``; of every hundred different prompts some are refused, some never
    answered."""
    message = {"role": "assistant", "content": "an answer " * 20}
    reply = {
        "id": "x", "object": "chat.completion", "created": 0, "model": "stub",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "total_tokens": 2, "completion_tokens": 40},
    }  # fmt: skip
    good = json.dumps(reply).encode()
    bad = json.dumps({"error": {"message": "this prompt is refused"}}).encode()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
                size = next(int(x.split(b":")[1]) for x in head if x.startswith(b"content-length"))
                body = json.loads(await reader.readexactly(size))
                kind = int(body["messages"][-1]["content"].split()[-1]) % 100
                status, payload = (b"400 Bad", bad) if kind < refused else (b"200 OK", good)
                await asyncio.sleep(3600 if refused <= kind < refused + slow else latency)
                writer.write(
                    b"HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
                    % (status, len(payload))
                    + payload
                )
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", port) as server:
        await server.serve_forever()


def server(options: argparse.Namespace) -> dict[str, float]:
    """Prompts to a stub; ``--by pool`` sends them through a pool of threads, as many do it."""
    from trueline.evaluation.backends import Decoding, Request, ask, open_backend
    from trueline.evaluation.harness.store import Store
    from trueline.records import Message

    port = 8300 + os.getpid() % 500
    command = [sys.executable, __file__, "--stub", str(port), str(options.refused),
               str(options.slow)]  # fmt: skip
    process = subprocess.Popen(command)
    time.sleep(2)
    url = f"http://127.0.0.1:{port}/v1"
    prompts = [f"please answer number {k}" for k in range(options.count)]
    try:
        with Watched() as watched:
            if options.by == "pool":
                failed = _pool(url, prompts, options.concurrency)
            else:
                backend = open_backend("stub", base_url=url, concurrency=options.concurrency,
                                       timeout=options.timeout, retries=1)  # fmt: skip
                asked = [Request((Message("user", prompt),)) for prompt in prompts]
                store = Store(Path(tempfile.mkdtemp(dir=options.folder)), "answers")
                answers = ask(backend, asked, Decoding(64), store)
                failed = sum(bool(answer.failed) for answer in answers)
                watched.figures["refused for good"] = sum(
                    bool(a.failed) and not a.retry for a in answers
                )
    finally:
        process.terminate()
    rate = options.count / watched.figures["seconds"]
    return {**watched.figures, "replies a second": rate, "failed": failed}


def _pool(url: str, prompts: list[str], concurrency: int) -> int:
    from concurrent.futures import ThreadPoolExecutor

    import openai

    client = openai.OpenAI(base_url=url, api_key="none")

    def one(prompt: str) -> None:
        client.chat.completions.create(
            model="stub", messages=[{"role": "user", "content": prompt}], max_tokens=64
        )

    with ThreadPoolExecutor(concurrency) as pool:
        list(pool.map(one, prompts))
    return 0


# --- all of it ------------------------------------------------------------------------------------

LINES: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "encoding": encoding, "restart": restart, "fill": fill, "reference": reference,
    "server": server, "inspect": inspect, "dedup": dedup, "local": local,
}  # fmt: skip


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("line", choices=[*LINES])
    parser.add_argument("--count", type=int, default=10_000, help="rows, completions or prompts")
    parser.add_argument("--by", default="trueline", help="who does it")
    parser.add_argument("--words", type=int, default=12)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--loss", default="simpo")
    parser.add_argument("--reference-cache", default="none")
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--timeout", type=float, default=2.0)
    parser.add_argument("--refused", type=int, default=0, help="of a hundred")
    parser.add_argument("--slow", type=int, default=0, help="of a hundred")
    parser.add_argument("--near", type=float, default=0.8, help="0 for copies alone")
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "scale")
    return parser.parse_args()


def main() -> None:
    """One line measured; its figures join those kept before."""
    if sys.argv[1:2] == ["--stub"]:
        port, refused, slow = map(int, sys.argv[2:])
        asyncio.run(stub(port, 0.2, refused, slow))
        return
    options = parsed()
    options.folder.mkdir(parents=True, exist_ok=True)
    figures = LINES[options.line](options)
    given = {k: v for k, v in vars(options).items() if k not in ("folder", "tokenizer")}
    row = {**given, "tokenizer": options.tokenizer and options.tokenizer.name, **figures}
    print(json.dumps(row))
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / "scale.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
