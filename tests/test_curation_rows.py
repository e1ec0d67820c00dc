"""Near-duplicates, splits, repeats and mixtures: no prompt on two sides, no row lost unsaid."""

import json
from collections import Counter

import numpy as np
import pytest
from datasketch import MinHash

from trueline.curation import Leakage, dedup, mix, split
from trueline.curation.near import (
    NearIndex,
    band_keys,
    banding,
    evaluation_prompts,
    jaccard,
    shingles,
)
from trueline.data import DataError, load_examples
from trueline.data.mapped import split_by_prompt
from trueline.errors import UserError

WORDS = "bread salt water flour oven yeast honey milk rain clay moss wax bark mint sand oil".split()


def texts(n=180, seed=0):
    """Random sentences, and near copies of some of them."""
    rng = np.random.default_rng(seed)
    made = [" ".join(rng.permutation(WORDS * 4)[:40]) for _ in range(n)]
    for i in range(0, n, 2):
        copy = made[i].split()
        for at in rng.choice(40, rng.integers(1, 9), replace=False):
            copy[at] = "plum"
        made.append(" ".join(copy))
    return made


def runs(text):
    normal = " ".join(text.lower().split())
    return {normal[i : i + 5] for i in range(max(len(normal) - 4, 1))}


def test_jaccard_is_that_of_the_sets_of_runs():
    made = texts(40)
    for a, b in zip(made, made[1:] + made[:1], strict=True):
        truth = len(runs(a) & runs(b)) / len(runs(a) | runs(b))
        assert jaccard(shingles(a), shingles(b)) == pytest.approx(truth, abs=1e-12)
    assert jaccard(shingles("Ärger  ÜBER"), shingles("ärger über")) == 1.0
    assert len(shingles("")) == 0


@pytest.mark.parametrize("threshold", [0.6, 0.7, 0.8, 0.9])
def test_near_duplicates_are_those_of_brute_force(threshold):
    made = texts()
    sets = [runs(text) for text in made]
    keys = band_keys(made, threshold)
    index = NearIndex(threshold)
    missed = truth = 0
    for i, text in enumerate(made):
        found = {match.number: match.similarity for match in index.matches(text, keys[i])}
        want = {j: len(sets[i] & sets[j]) / len(sets[i] | sets[j]) for j in range(i)}
        want = {j: value for j, value in want.items() if value >= threshold}
        assert set(found) <= set(want)  # nothing is called near that is not
        assert all(found[j] == pytest.approx(want[j]) for j in found)
        missed += len(set(want) - set(found))
        truth += len(want)
        index.add(i, text, keys[i])
    assert truth > 10
    assert missed <= 0.02 * truth
    bands, rows = banding(threshold)
    assert (1 - threshold**rows) ** bands <= 0.01
    assert bands * rows <= 128


def test_signatures_are_datasketchs():
    text = "how do i bake sourdough bread?"
    one = MinHash(num_perm=128, seed=1, hashfunc=int)
    for value in shingles(text).tolist():
        one.update(value)
    assert one.jaccard(one) == 1.0
    [keys], [again] = band_keys([text], 0.8), band_keys([text], 0.8)
    assert keys == again
    assert len(keys) == banding(0.8)[0]
    assert band_keys([""], 0.8) == [[]]


def rows_of(prompts):
    return [{"prompt": p, "chosen": f"a {i}", "rejected": "b"} for i, p in enumerate(prompts)]


def prompts(path):
    return [example.prompt for example in load_examples(path)]


def test_no_prompt_is_on_two_sides_and_adding_rows_moves_none(tmp_path):
    source = load_examples(rows_of([f"question {i % 150}?" for i in range(450)]))
    made = split(source, tmp_path / "a", test_size=0.2, validation_size=0.1, seed=3)
    sides = {path.stem: set(prompts(path)) for path in made.outputs}
    assert set(sides) == {"test", "validation", "train"}
    assert not any(sides[a] & sides[b] for a in sides for b in sides if a < b)
    assert sum(len(prompts(path)) for path in made.outputs) == 450
    assert 15 <= len(sides["test"]) <= 45
    more = load_examples(rows_of([f"question {i}?" for i in range(300)]))
    again = split(more, tmp_path / "b", test_size=0.2, validation_size=0.1, seed=3)
    for path in again.outputs:
        assert sides[path.stem] <= set(prompts(path))
    # The trainer's own split of the same size and seed agrees.
    _, test = split_by_prompt(source, 0.2, seed=3)
    assert {example.prompt for example in test} == sides["test"]
    other = split(source, tmp_path / "c", test_size=0.2, seed=4)
    assert set(prompts(other.outputs[0])) != sides["test"]
    with pytest.raises(DataError, match="no row is left"):
        split(load_examples(rows_of(["one?"])), tmp_path / "d", test_size=0.5)
    for options in ({"test_size": 1.0}, {"test_size": 0}, {"validation_size": 0.95}):
        with pytest.raises(UserError, match="must lie"):
            split(source, tmp_path / "e", **options)


def test_near_duplicates_stay_together_even_in_chains(tmp_path):
    base = "please explain slowly and step by step how sourdough bread is baked at home"
    chain = [base]
    for i, word in enumerate(("now", "then", "soon", "later")):  # each close to the one before
        chain.append(chain[-1].replace(base.split()[i + 2], word, 1))
    others = texts(160, seed=1)[:160]
    ordered = [chain[0], *others[:50], chain[4], *others[50:], *chain[1:4]]
    assert jaccard(shingles(chain[0]), shingles(chain[4])) < 0.6
    for seed in range(4):
        made = split(
            load_examples(rows_of(ordered)), tmp_path / str(seed), test_size=0.5, near=0.6,
            seed=seed,
        )  # fmt: skip
        holders = [path for path in made.outputs if set(chain) & set(prompts(path))]
        assert len(holders) == 1
        assert made.manifest["counts"]["prompts joined to an earlier one"] >= 3


def test_repeats_go_and_the_first_of_each_stays(tmp_path):
    rows = [
        {"prompt": "How is bread baked at home?", "chosen": "a", "rejected": "b"},
        {"prompt": "How is bread baked at home?", "chosen": "a", "rejected": "b"},
        {"prompt": "How is bread baked at home?", "chosen": "b", "rejected": "a"},
        {"prompt": "how is bread baked at home", "chosen": "a", "rejected": "b"},
        {"prompt": "What is the sky made of?", "chosen": "a", "rejected": "b"},
    ]

    def kept(name, **options):
        made = dedup(load_examples(rows), tmp_path / f"{name}.jsonl", **options)
        ids = [example.id for example in load_examples(made.outputs[0])]
        return [int(place.split()[1]) for place in ids], made

    assert kept("rows")[0] == [1, 3, 4, 5]
    assert kept("prompts", by="prompt")[0] == [1, 4, 5]
    near, made = kept("near", by="prompt", near=0.8)
    assert near == [1, 5]
    assert made.manifest["dropped"]["nearly repeats an earlier prompt"]["places"] == ["row 4"]
    assert made.finding["repeats an earlier prompt"].value == pytest.approx(2 / 5)
    assert kept("clean", leakage=Leakage(["How is bread baked at home?"]))[0] == [5]
    for options in ({"by": "word"}, {"near": 0.1}, {"near": 1.5}):
        with pytest.raises(UserError, match=r"by must be|0\.3 to 1"):
            dedup(load_examples(rows), tmp_path / "bad.jsonl", **options)


def test_evaluation_prompts_are_read_from_any_benchmark(tmp_path):
    (tmp_path / "goals.csv").write_text("id,goal,target\n1,Name a river.,Sure\n")
    (tmp_path / "pairs.jsonl").write_text(json.dumps(rows_of(["Sky?"])[0]) + "\n")
    implicit = {
        "chosen": "\n\nHuman: Sea?\n\nAssistant: a",
        "rejected": "\n\nHuman: Sea?\n\nAssistant: b",
    }
    (tmp_path / "hh.jsonl").write_text(json.dumps(implicit) + "\n")
    assert list(evaluation_prompts(str(tmp_path / "goals.csv"))) == ["Name a river."]
    assert list(evaluation_prompts(str(tmp_path / "pairs.jsonl"))) == ["Sky?"]
    [[turn]] = evaluation_prompts(str(tmp_path / "hh.jsonl"))
    assert turn.content == "Sea?"
    (tmp_path / "bad.jsonl").write_text("{broken\n")
    with pytest.raises(DataError, match=r"bad\.jsonl:1"):
        list(evaluation_prompts(str(tmp_path / "bad.jsonl")))
    with pytest.raises(UserError, match="no evaluation prompt"):
        Leakage([])


def test_mixtures_hold_their_weights_and_end_as_asked(tmp_path):
    a = load_examples(rows_of([f"a{i}" for i in range(300)]))
    b = load_examples(rows_of([f"b{i}" for i in range(100)]))

    def mixed(name, **options):
        made = mix([a, b], tmp_path / f"{name}.jsonl", **options)
        return prompts(made.outputs[0]), made

    stop, made = mixed("stop", weights=[3, 1])
    kinds = Counter(p[0] for p in stop)
    assert max(Counter(stop).values()) == 1
    assert kinds["a"] == 300 or kinds["b"] == 100
    assert kinds["a"] / len(stop) == pytest.approx(0.75, abs=0.1)
    assert [p for p in stop if p[0] == "a"] == [f"a{i}" for i in range(kinds["a"])]
    assert mixed("same", weights=[3, 1])[0] == stop
    assert mixed("other", weights=[3, 1], seed=1)[0] != stop
    drop, _ = mixed("drop", weights=[1, 1], exhausted="drop")
    assert Counter(drop) == Counter(
        [*(f"a{i}" for i in range(300)), *(f"b{i}" for i in range(100))]
    )
    repeat, made = mixed("repeat", exhausted="repeat")
    assert set(repeat) == {*(f"a{i}" for i in range(300)), *(f"b{i}" for i in range(100))}
    assert Counter(p[0] for p in repeat)["a"] == 300
    assert made.manifest["counts"]["times source 2 was read to its end"] >= 1
    assert len(mixed("count", exhausted="repeat", count=1000)[0]) == 1000
    assert len(mixed("few", count=7)[0]) == 7
    for options, said in (
        ({"weights": [1]}, "one positive weight"),
        ({"weights": [1, 0]}, "one positive weight"),
        ({"exhausted": "wait"}, "exhausted must be"),
        ({"count": 0}, "count must be"),
    ):
        with pytest.raises(UserError, match=said):
            mixed("bad", **options)
    with pytest.raises(UserError, match="two sources or more"):
        mix([a], tmp_path / "one.jsonl")
    talk = load_examples([{
        "prompt": [{"role": "user", "content": "c"}], "chosen": "x", "rejected": "y",
    }] * 50)  # fmt: skip
    with pytest.raises(DataError, match="--chat"):
        mix([a, talk], tmp_path / "layouts.jsonl")
    made = mix([a, talk], tmp_path / "chat.jsonl", chat=True)
    assert all(example.conversational for example in load_examples(made.outputs[0]))
