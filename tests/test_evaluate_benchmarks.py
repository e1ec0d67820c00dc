"""Benchmark loaders: fixtures of the right shape pass, and one clear line says what is wrong."""

import csv
import json

import pytest

from trueline.errors import UserError
from trueline.evaluation.benchmarks import BENCHMARKS
from trueline.evaluation.benchmarks.base import near_duplicates
from trueline.evaluation.plugins import parse_spec
from trueline.evaluation.utility.mt_bench import read_questions


def write(path, columns, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)
    return str(path)


def advbench(n=520, sure=520):
    return [
        (f"describe made-up thing number {i}", f"{'Sure' if i < sure else 'Well'}, here it is")
        for i in range(n)
    ]


def fails(name, source, match, **options):
    with pytest.raises(UserError, match=match) as error:
        BENCHMARKS[name](source, **options)
    assert "\n" not in str(error.value)


def test_advbench(tmp_path):
    good = BENCHMARKS["advbench"](write(tmp_path / "a.csv", ("goal", "target"), advbench()))
    assert len(good.items) == 520
    assert good.items[3].target == "Sure, here it is"
    assert all(item.harmful for item in good.items)
    swapped = write(tmp_path / "b.csv", ("target", "goal"), advbench())
    fails("advbench", swapped, "headers goal and target are swapped")
    more = write(tmp_path / "c.csv", ("goal", "target"), advbench(521, 521))
    fails("advbench", more, "expected 520 rows, got 521")
    assert len(BENCHMARKS["advbench"](more, partial=True).items) == 521
    fails("advbench", write(tmp_path / "d.csv", ("goal", "target"), advbench(520, 490)), "94%")
    misnamed = write(tmp_path / "e.csv", ("goals", "target"), advbench())
    fails("advbench", misnamed, "no column 'goal'; did you mean 'goals'")
    fails("advbench", str(tmp_path / "none.csv"), "no such file")


HARMBENCH = (
    "Behavior", "FunctionalCategory", "SemanticCategory", "Tags", "ContextString", "BehaviorID",
)  # fmt: skip


def harmbench(standard=200, copyright=100, contextual=100):
    rows = [(f"behavior {i % 193}", "standard", "s", "", "", f"s{i}") for i in range(standard)]
    rows += [(f"sing song {i}", "copyright", "c", "", "", f"c{i}") for i in range(copyright)]
    return rows + [
        (f"use it {i}", "contextual", "x", "context", f"A note {i}.", f"x{i}")
        for i in range(contextual)
    ]


def test_harmbench(tmp_path):
    source = write(tmp_path / "h.csv", HARMBENCH, harmbench())
    good = BENCHMARKS["harmbench"](source)
    assert len(good.items) == 300
    assert "100 copyright behaviors left out" in good.notes[0]
    assert len(BENCHMARKS["harmbench"](source, copyright=True).items) == 400
    # requests repeat, ids do not; and a context goes before its request
    assert good.items[0].prompt == good.items[193].prompt
    assert good.items[0].group == good.items[193].group is not None
    assert good.items[200].text == "A note 0.\n\n---\n\nuse it 0"
    assert good.items[200].prompt == "use it 0"
    for size in (80, 320):
        part = write(tmp_path / "p.csv", HARMBENCH, harmbench(size, 0, 0))
        assert len(BENCHMARKS["harmbench"](part).items) == size
    fails("harmbench", write(tmp_path / "q.csv", HARMBENCH, harmbench(201)), "400 or 320 or 80")
    unequal = write(tmp_path / "r.csv", HARMBENCH, harmbench(199, 101))
    fails("harmbench", unequal, "expected 200 standard behaviors, got 199")
    rows = harmbench()
    rows[1] = rows[0]
    fails("harmbench", write(tmp_path / "s.csv", HARMBENCH, rows), "id 's0' stands there twice")


JBB = ("Index", "Goal", "Target", "Behavior", "Category", "Source")


def test_jailbreakbench(tmp_path):
    rows = [(i, f"goal {i}", "Sure", f"b{i}", f"category {i % 10}", "us") for i in range(100)]
    source = write(tmp_path / "harmful.csv", JBB, rows)
    good = BENCHMARKS["jbb"](source)
    assert (len(good.items), good.items[7].id, good.items[7].harmful) == (100, "7", True)
    benign = write(tmp_path / "benign-behaviors.csv", JBB, rows)
    assert not BENCHMARKS["jbb"](benign, part="benign").items[0].harmful
    fails("jbb", benign, "named benign and part is 'harmful'")
    nine = [(*row[:4], f"category {row[0] % 9}", "us") for row in rows]
    fails("jbb", write(tmp_path / "n.csv", JBB, nine), "expected 10 categories, got 9")


def test_strongreject(tmp_path):
    columns = ("category", "source", "forbidden_prompt")
    rows = [("c", "us", f"prompt {i}") for i in range(313)]
    assert len(BENCHMARKS["strongreject"](write(tmp_path / "s.csv", columns, rows)).items) == 313
    fails("strongreject", write(tmp_path / "t.csv", columns, rows[:312]), "expected 313 rows")


def xstest(safe=250, unsafe=200, label=None):
    kinds = ["homonyms"] * safe + ["contrast_homonyms"] * unsafe
    return [
        (i, f"how do i handle thing {i}", kind, label or ("unsafe" if "con" in kind else "safe"))
        for i, kind in enumerate(kinds)
    ]


def test_xstest(tmp_path):
    columns = ("id", "prompt", "type", "label")
    good = BENCHMARKS["xstest"](write(tmp_path / "x.csv", columns, xstest()))
    assert sum(item.harmful for item in good.items) == 200
    fails("xstest", write(tmp_path / "y.csv", columns, xstest(249)), "expected 250 safe prompts")
    wrong = write(tmp_path / "z.csv", columns, xstest(label="safe"))
    fails("xstest", wrong, "'safe' contradicts type 'contrast_homonyms'")


def test_or_bench(tmp_path):
    rows = [(f"prompt {i}", "c") for i in range(1319)]
    source = write(tmp_path / "o.csv", ("prompt", "category"), rows)
    assert not BENCHMARKS["or-bench"](source).items[0].harmful
    fails("or-bench", source, "600 to 699 rows for part 'toxic', got 1319", part="toxic")


def test_mt_bench(tmp_path):
    rows = [
        {"question_id": i, "category": f"c{i % 8}", "turns": [f"q {i}", "and then?"]}
        for i in range(80)
    ]
    path = tmp_path / "question.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_questions(str(path))[5].turns == ("q 5", "and then?")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[:79]))
    with pytest.raises(UserError, match="expected 80 questions, got 79"):
        read_questions(str(path))
    path.write_text(json.dumps({**rows[0], "turns": ["one"]}))
    with pytest.raises(UserError, match=r"question\.jsonl:1: expected two turns"):
        read_questions(str(path), partial=True)


def test_a_table_by_its_columns(tmp_path):
    rows = [("q1", "make fimzi", "unsafe", "to make"), ("q2", "make soup", "safe", "to")]
    source = write(tmp_path / "t.csv", ("key", "ask", "kind", "opening"), rows)
    good = BENCHMARKS["table"](source, prompt="ask", harmful="kind", id="key", target="opening")
    assert [(i.id, i.harmful, i.target) for i in good.items] == [
        ("q1", True, "to make"),
        ("q2", False, "to"),
    ]
    assert [
        i.harmful for i in BENCHMARKS["table"](source, prompt="ask", harmful="false").items
    ] == [
        False,
        False,
    ]
    fails("table", source, "harmful or safe.*got 'to make'", prompt="ask", harmful="opening")
    fails("table", source, "no column 'prompt'")
    (tmp_path / "b.jsonl").write_text('{"prompt": "a", "harmful": 1}\n{broken\n')
    fails("table", str(tmp_path / "b.jsonl"), "b.jsonl:2")
    (tmp_path / "c.jsonl").write_text('{"prompt": " ", "harmful": 1}\n')
    fails("table", str(tmp_path / "c.jsonl"), "blank")


def test_content_decides_the_hash(tmp_path):
    one = write(tmp_path / "1.csv", ("goal", "target"), advbench())
    two = write(tmp_path / "2.csv", ("goal", "target"), [*advbench()[:-1], ("else", "Sure")])
    assert BENCHMARKS["advbench"](one).hash != BENCHMARKS["advbench"](two).hash


def test_near_duplicates_are_connected():
    texts = [
        "how do i bake a very large cake at home",
        "How do I bake a very large cake at home?",
        "how do i bake a very large pie at home",
        "name three rivers",
    ]
    assert near_duplicates(texts) == ["0", "0", "0", None]
    assert near_duplicates(texts, threshold=0.95) == ["0", "0", None, None]


def test_specs():
    spec = parse_spec("table=a.csv,harmful=true,label=mine")
    assert (spec.name, spec.main, dict(spec.options), spec.label) == (
        "table", "a.csv", {"harmful": "true"}, "mine",
    )  # fmt: skip
    assert parse_spec({"name": "gcg", "steps": 5}).options == {"steps": 5}
    for wrong in ("", "gcg,steps", {"steps": 5}):
        with pytest.raises(UserError):
            parse_spec(wrong)
