"""Rows are encoded once: kept by content, found again, and the same however they were encoded."""

import json
import logging
import shutil

import numpy as np
import pytest
import torch
from tokenizers import AddedToken

from corpus import CHATS, PLAIN, TEMPLATES, small, text_example
from tiny import WORDS, tiny_llama, tiny_tokenizer
from trueline import AlignmentConfig, AlignmentTrainer
from trueline.batching import Branch, Encoder, Recipe, TokenTree, Trees, encoded, view
from trueline.batching.arrow import Shard
from trueline.batching.drawn import draw
from trueline.config import load_run_config
from trueline.data import Mapped, Mixed, load_examples
from trueline.data.mapped import as_chat, split_by_prompt
from trueline.errors import UserError
from trueline.prompts import Renderer
from trueline.prompts.control import ControlTokens
from trueline.runs.align import load_datasets
from trueline.training.remedies import difference_mask
from trueline.training.streaming import AHEAD, StreamPlan, TreeStream

KINDS = ("bytes", "first", "always", "legacy", "unigram")


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    monkeypatch.setattr("trueline.batching.once.SHARD", 4)
    monkeypatch.setattr("trueline.batching.once.BATCH", 3)


def rows(count=18):
    rng = np.random.default_rng(0)

    def say(longest):
        return " ".join(rng.choice(WORDS, rng.integers(1, longest)))

    return [
        {"prompt": say(9), "chosen": say(12) + " yes", "rejected": say(12) + " no"}
        for _ in range(count)
    ]


def lines(path, count=18):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(count)))
    return path


def recipe(**options):
    return Recipe(Encoder(tiny_tokenizer(), **options), "paired")


def same(a, b):
    assert (a.id, a.desirable, len(a.branches)) == (b.id, b.desirable, len(b.branches))
    assert (a.reference_prompt is None) == (b.reference_prompt is None)
    pairs = [(a.for_reference().prompt, b.for_reference().prompt), (a.prompt, b.prompt)]
    for x, y in zip(a.branches, b.branches, strict=True):
        pairs += [(x.ids, y.ids), (x.mask, y.mask)]
    assert all(np.array_equal(x, y) and x.dtype == y.dtype for x, y in pairs)


def all_same(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        same(a, b)


@pytest.mark.parametrize("kind", KINDS)
def test_many_rows_at_once_give_the_ids_of_each_alone(kind):
    tokenizer = small(kind, TEMPLATES["hermes"])
    examples = [text_example(*texts) for texts in PLAIN.values()]
    examples += CHATS.values()
    for options in ({"max_length": None}, {"max_length": 24}):
        alone, together = Encoder(tokenizer, **options), Encoder(tokenizer, **options)
        all_same(together.many(examples), [alone(example) for example in examples])
        assert together.told.to_dict() == alone.told.to_dict()


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_that_is_encoded_once_gives_the_ids_of_the_whole(kind):
    """Cut at control tokens or not, as text that stands behind another or alone."""
    cut = 0
    for template in ("chatml", "llama3", "gemma", "r1", "hermes"):
        renderer = Renderer(small(kind, TEMPLATES[template]))
        for name, example in CHATS.items():
            if name in ("system", "tool calls", "tool results") and template != "hermes":
                continue
            texts = list(draw(renderer, example).texts())
            whole = [renderer.control.encode(text) for text in texts]
            with renderer.control.ahead([texts]):
                assert [renderer.control.encode(text) for text in texts] == whole
                cut += renderer.control.seam(texts[0]) > 0
    assert cut > 30


@pytest.mark.parametrize("how", [
    {"lstrip": True}, {"single_word": True}, {"normalized": True}, {"other": "a<|x|>"},
    {"other": "a<|"}, {"other": "<|x|> b", "lstrip_other": True}, {"rstrip": True}, {},
], ids=str)  # fmt: skip
def test_nothing_is_cut_where_a_token_depends_on_what_stands_before(how):
    tokenizer = small("first", "{{ messages }}<|x|>")
    options = {key: value for key, value in how.items() if not key.endswith("other")}
    added = [AddedToken("<|x|>", special=True, **{"normalized": False, **options})]
    if "other" in how:
        added.append(AddedToken(how["other"], special=True, normalized=False,
                                lstrip=how.get("lstrip_other", False)))  # fmt: skip
    tokenizer.add_tokens(added, special_tokens=True)
    control = ControlTokens(tokenizer)
    alone = how in ({}, {"rstrip": True})
    assert (control.seam("say <|x|> b") == 4) == alone, how
    for before in ("", "a", "say ", "say a", "<|x|>", "a<|im_end|> "):
        texts = [before + "<|x|> b", before + "<|x|> b c", before + "<|x|>"]
        whole = [control.encode(text) for text in texts]
        with control.ahead([texts]):
            assert [control.encode(text) for text in texts] == whole


def test_trees_come_back_from_columns_as_they_went_in():
    rng = np.random.default_rng(1)

    def ids(least):
        return rng.integers(0, 9, rng.integers(least, 9)).astype(np.int32)

    trees = []
    for number in range(30):
        branches = tuple(Branch(x, x > 3) for x in (ids(1) for _ in range(rng.integers(1, 4))))
        labels = tuple(bool(x) for x in rng.integers(0, 2, len(branches)))
        other = ids(0) if number % 3 == 0 else None
        trees.append(TokenTree(ids(0), branches, labels, other, f"é.jsonl:{number}"))
    columns = Trees([Shard.of(trees[:11]), Shard.of([]), Shard.of(trees[11:])])
    all_same(columns, trees)
    all_same([columns[i] for i in (-1, 0, 10, 11, 29)], [trees[i] for i in (-1, 0, 10, 11, 29)])
    assert columns.inputs.tolist() == [tree.inputs for tree in trees]
    assert columns.targets.tolist() == [sum(b.length for b in t.branches) for t in trees]
    patterns, which = columns.patterns
    assert [patterns[i] for i in which] == [tree.desirable for tree in trees]
    assert columns.content == Trees.of(trees).content != Trees.of(trees[::-1]).content
    with pytest.raises(IndexError):
        columns[30]


@pytest.mark.parametrize("kept", [pytest.param(True, marks=pytest.mark.slow), False])
def test_several_processes_encode_what_one_does(kept, tmp_path):
    examples = load_examples(lines(tmp_path / "a.jsonl"))
    one, two = recipe(max_length=14), recipe(max_length=14)
    alone = [t for e in examples for t in view(e, one.encoder(e), "paired")]
    done = []
    folder = tmp_path / "kept" if kept else None
    trees = encoded(examples, two, folder=folder, processes=2, progress=done.append)
    all_same(trees, alone)
    assert two.encoder.told.to_dict() == one.encoder.told.to_dict()
    assert two.encoder.counts
    assert done == [4, 4, 4, 4, 2]


def test_a_file_that_was_encoded_is_not_read_again(tmp_path, monkeypatch):
    path = lines(tmp_path / "a.jsonl")
    first, again = recipe(max_length=14), recipe(max_length=14)
    made = encoded(load_examples(path), first, folder=tmp_path / "kept", name="a",
                   about=lambda: {"dropped": {"why": 1}})  # fmt: skip
    monkeypatch.setattr(Encoder, "many", None)
    found = encoded(iter(()), again, folder=tmp_path / "kept", name="a")
    all_same(found, made)
    assert found.content == made.content
    assert found.about == {"dropped": {"why": 1}}
    assert again.encoder.told.to_dict() == first.encoder.told.to_dict()


def test_what_was_cut_off_goes_on_where_it_stopped(tmp_path, monkeypatch):
    examples = load_examples(lines(tmp_path / "a.jsonl"))
    asked = []
    many = Encoder.many

    def counted(self, batch):
        asked.append(len(batch))
        if sum(asked) > 9:
            raise KeyboardInterrupt
        return many(self, batch)

    monkeypatch.setattr(Encoder, "many", counted)
    with pytest.raises(KeyboardInterrupt):
        encoded(examples, recipe(), folder=tmp_path / "kept")
    monkeypatch.setattr(Encoder, "many", lambda self, b: asked.append(len(b)) or many(self, b))
    asked.clear()
    trees = encoded(examples, recipe(), folder=tmp_path / "kept")
    assert sum(asked) == 18 - 8  # two whole shards were there
    all_same(trees, encoded(examples, recipe()))


@pytest.mark.parametrize("harm", ["flip", "cut", "gone"])
def test_a_damaged_shard_is_encoded_again(harm, tmp_path, caplog):
    examples = load_examples(lines(tmp_path / "a.jsonl"))
    made = encoded(examples, recipe(), folder=tmp_path / "kept", name="a")
    content = made.content
    path = sorted((tmp_path / "kept").rglob("*.arrow"))[2]
    raw = bytearray(path.read_bytes())
    at = raw.index(made.shards[0].values["tokens"][:1].tobytes(), 600)
    raw[at] ^= 1
    del made
    if harm == "gone":
        path.unlink()
    else:
        path.write_bytes(raw if harm == "flip" else raw[: len(raw) // 2])
    with caplog.at_level(logging.WARNING):
        again = encoded(examples, recipe(), folder=tmp_path / "kept", name="a")
    assert again.content == content
    assert ("damaged" in caplog.text) == (harm != "gone")


def test_whatever_ids_depend_on_is_part_of_the_key():
    plain = recipe().key
    template = tiny_tokenizer()
    template.chat_template += " "
    word = tiny_tokenizer()
    word.add_tokens(["purple"])
    others = [
        recipe(max_length=9), recipe(append_eos=True), recipe(allow_control_tokens=True),
        recipe(truncation_mode="keep_end"), recipe(max_prompt_length=5),
        Recipe(Encoder(tiny_tokenizer(adds_bos=False)), "paired"),
        Recipe(Encoder(template), "paired"), Recipe(Encoder(word), "paired"),
        Recipe(Encoder(tiny_tokenizer()), "unpaired"),
        Recipe(Encoder(tiny_tokenizer()), "paired", difference_mask),
    ]  # fmt: skip
    assert len({plain, *(other.key for other in others)}) == 1 + len(others)
    assert recipe().key == plain


def test_a_name_tells_files_and_how_they_are_read_apart(tmp_path):
    path = lines(tmp_path / "a.jsonl")
    stream = load_examples(path)
    train, test = split_by_prompt(stream, 0.3, seed=1)
    other_seed, _ = split_by_prompt(stream, 0.3, seed=2)
    names = [
        stream.name, load_examples(path, limit=3).name, load_examples(path, skip_bad=True).name,
        Mapped(stream, as_chat, "as_chat").name, train.name, test.name, other_seed.name,
    ]  # fmt: skip
    path.write_text(path.read_text() + json.dumps(rows(1)[0]) + "\n")
    names.append(load_examples(path).name)
    assert len({json.dumps(name) for name in names}) == len(names)
    assert load_examples(rows()).name is None


def test_a_side_of_a_split_that_is_empty_is_said(tmp_path):
    train, _ = split_by_prompt(load_examples(rows(1) * 3), 0.5)
    _, test = split_by_prompt(load_examples(rows(1) * 3), 0.5)
    with pytest.raises(UserError, match=r"leaves the (train|test) side empty"):
        list(train), list(test)


def test_data_that_grew_are_encoded_where_they_grew(tmp_path, monkeypatch):
    path = lines(tmp_path / "a.jsonl", 12)
    encoded(load_examples(path), recipe(), folder=tmp_path / "kept")
    asked = []
    many = Encoder.many
    monkeypatch.setattr(Encoder, "many", lambda self, b: asked.append(len(b)) or many(self, b))
    lines(path, 16)
    encoded(load_examples(path), recipe(), folder=tmp_path / "kept")
    assert sum(asked) == 4


def test_several_sources_are_one_stream(tmp_path):
    def source(name, count):
        texts = [{"prompt": f"{name} {i}", "chosen": "yes", "rejected": "no"} for i in range(count)]
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in texts))
        return load_examples(path)

    a, b = source("a", 300), source("b", 300)
    whole = Mixed([a, b])
    assert [e.prompt for e in whole] == [e.prompt for e in (*a, *b)]
    assert (whole.report.rows, whole.source) == (600, f"{tmp_path}/a.jsonl, {tmp_path}/b.jsonl")
    by_weight = Mixed([a, b], [3.0, 1.0], seed=1)
    drawn = [e.prompt[0] for e in by_weight]
    assert drawn == [e.prompt[0] for e in by_weight]
    assert 0.68 < drawn.count("a") / len(drawn) < 0.82
    assert max(drawn.count("a"), drawn.count("b")) == 300, "until a source ends"
    names = [whole.name, by_weight.name, Mixed([a, b], [3.0, 1.0]).name, Mixed([b, a]).name]
    assert len({json.dumps(name) for name in names}) == 4
    assert Mixed([a, load_examples(rows())]).name is None
    with pytest.raises(UserError, match="one positive weight"):
        Mixed([a, b], [1.0])
    chat = Mapped(b, as_chat, "as_chat")
    with pytest.raises(UserError, match="differ in layout"):
        list(Mixed([a, chat]))


def test_a_configuration_mixes_data_sets(tmp_path):
    def read(*entries, **more):
        given = {"loss_type": "dpo", "datasets": list(entries), **more}
        return load_datasets(load_run_config(None, given, set()).data, seed=3)

    first, second = lines(tmp_path / "a.jsonl", 9), lines(tmp_path / "b.jsonl", 5)
    train, test = read({"path": str(first)}, {"path": str(second)})
    assert (len(list(train)), test) == (14, None)
    train, _ = read({"path": str(first), "weight": 1}, {"path": str(second), "weight": 3})
    assert train.name[1:] == [[1.0, 3.0], 3]
    for entries, said in (
        (["a.jsonl"], "must be"),
        ([{"path": str(first), "fraction": 0.5}], "'fraction' is not known"),
        ([{"path": str(first), "weight": 1}, {"path": str(second)}], "or none of them"),
    ):
        with pytest.raises(UserError, match=said):
            read(*entries)
    with pytest.raises(UserError, match="one of the two"):
        read({"path": str(first)}, dataset_name="c.jsonl")


# --- streams --------------------------------------------------------------------------------------


@pytest.mark.parametrize("buffer", [1, 7, 1000])
def test_a_stream_gives_the_same_trees_however_it_is_taken(buffer, tmp_path, monkeypatch):
    monkeypatch.setattr("trueline.training.streaming.AHEAD", 8)
    examples = load_examples(lines(tmp_path / "a.jsonl", 40))

    def stream():
        return TreeStream(examples, recipe(), buffer=buffer, seed=3)

    whole = stream().take(range(100))  # two epochs and a half
    assert sorted(tree.id for tree in whole[:40]) == sorted(e.id for e in examples)
    assert sorted(tree.id for tree in whole[40:80]) == sorted(e.id for e in examples)
    ordered = [tree.id for tree in whole[:40]] == [e.id for e in examples]
    assert ordered == (buffer == 1)
    parts = stream()
    all_same(
        [t for start in range(0, 100, 10) for t in parts.take(range(start, start + 10))], whole
    )
    for start in (0, 7, 39, 40, 63):
        all_same(stream().take(range(start, start + 20)), whole[start : start + 20])


def test_a_plan_reads_no_row_of_a_stream_twice(tmp_path):
    stream = TreeStream(load_examples(lines(tmp_path / "a.jsonl", 12)), recipe(), buffer=3, seed=0)
    stream.recipe.encoder.told.rows = 0
    plan = StreamPlan(stream, 3, 4)
    trees = [tree for indices in plan for tree in plan.share(indices).micro_batches.trees]
    whole = TreeStream(stream.examples, recipe(), buffer=3, seed=0).take(range(12))
    all_same(trees, whole)
    assert stream.recipe.encoder.told.rows == AHEAD


def test_skipping_counts_trees_and_not_rows(tmp_path):
    texts = [
        {"prompt": f"why {i} ?", "completions": ["yes", "no", "maybe"], "scores": [3, 2, i % 3]}
        for i in range(12)
    ]
    path = tmp_path / "ranked.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in texts))
    one = TreeStream(load_examples(path), recipe(), buffer=3, seed=0)
    whole = one.take(range(40))
    assert len({tree.id for tree in whole}) < len(whole)
    for start in range(12):
        other = TreeStream(load_examples(path), recipe(), buffer=3, seed=0)
        all_same(other.take(range(start, 40)), whole[start:])


def test_a_resumed_stream_goes_on_at_the_next_row(tmp_path):
    examples = load_examples(lines(tmp_path / "a.jsonl", 40))

    def run(folder, **more):
        return AlignmentTrainer(
            tiny_llama(),
            args=AlignmentConfig(
                output_dir=str(folder), loss_type="dpo", max_steps=6, streaming=True, seed=5,
                streaming_buffer=9, per_device_train_batch_size=4, precompute_ref_log_probs=False,
                save_steps=2, report_to="none", use_cpu=True, disable_tqdm=True, learning_rate=1e-2,
                reference_cache="none", gradient_checkpointing=False, **more,
            ),
            train_dataset=examples, processing_class=tiny_tokenizer(),
        )  # fmt: skip

    whole = run(tmp_path / "whole")
    whole.train()
    part = run(tmp_path / "part")
    part.train()
    for step in (4, 6):
        shutil.rmtree(tmp_path / "part" / f"checkpoint-{step}")
    resumed = run(tmp_path / "part")
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 6
    states = [list(t.model.state_dict().values()) for t in (whole, resumed)]
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"max_steps": -1}, "no known end"),
        ({"precompute_ref_log_probs": True}, "not known beforehand"),
        ({"streaming_buffer": 0}, "streaming_buffer must be"),
    ],
)
def test_what_a_stream_cannot_do_is_refused(change, said, tmp_path):
    examples = load_examples(lines(tmp_path / "a.jsonl", 4))
    settings = {"max_steps": 2, "precompute_ref_log_probs": False, **change}
    with pytest.raises(UserError, match=said):
        AlignmentTrainer(
            tiny_llama(),
            args=AlignmentConfig(output_dir=str(tmp_path), loss_type="dpo", streaming=True,
                                 report_to="none", use_cpu=True, **settings),
            train_dataset=examples, processing_class=tiny_tokenizer(),
        )  # fmt: skip
    with pytest.raises(UserError, match="in memory already"):
        TreeStream(load_examples(rows(3)), recipe(), buffer=2, seed=0)
