"""Loading: every form in every file type, bad input named by file and line, streaming."""

import gzip
import json
from itertools import islice

import pytest

from trueline.data import FORMS, DataError, detect, load_examples
from trueline.data.writers import Schema, write_csv, write_json
from trueline.records import Message

GOOD = {"prompt": "Sky?", "chosen": "Blue.", "rejected": "Green."}
TYPES = ["a.jsonl", "a.jsonl.gz", "a.json", "a.json.gz", "a.csv", "a.csv.gz", "a.parquet"]


def lines(path, *rows):
    path.write_text("".join(r if isinstance(r, str) else json.dumps(r) + "\n" for r in rows))
    return path


def write_raw(path, rows):
    """Rows as they are, in the file type that the name says."""
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), path)
    elif ".csv" in path.suffixes:
        write_csv(iter(rows), path, Schema(rows[0], conversational=False))
    else:
        write_json(iter(rows), path, Schema(rows[0], conversational=False))
    return path


@pytest.mark.parametrize("file", TYPES)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_in_every_file_type(tmp_path, form, file):
    row = dict(FORMS[form].example)
    path = write_raw(tmp_path / file, [row, row])
    examples = load_examples(path)
    assert examples.form.name == form
    first, second = examples
    assert first.completions == FORMS[form](row).completions
    assert first.pairs == FORMS[form](row).pairs
    assert first.id in {f"{file}:{2 if '.csv' in file else 1}", f"{file}:row 1"}
    assert second.id.startswith(f"{file}:")
    assert (examples.report.rows, examples.report.examples, examples.report.dropped) == (2, 2, {})


@pytest.mark.parametrize("file", TYPES)
def test_conversations_in_every_file_type(tmp_path, file):
    row = {
        "prompt": [{"role": "user", "content": 'Sky, "quoted",\nü?'}],
        "chosen": [{"role": "assistant", "content": "Blue."}],
        "rejected": [{"role": "assistant", "content": "Green."}],
    }
    (example,) = load_examples(write_raw(tmp_path / file, [row]))
    assert example.prompt == (Message("user", 'Sky, "quoted",\nü?'),)
    assert example.completions[1].content == (Message("assistant", "Green."),)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("{oops\n", "not valid JSON"),
        ("[1]\n", "a row must be an object"),
        ("[" * 100_000 + "\n", "not valid JSON"),
        ({"prompt": "a", "chosen": "b"}, "column 'rejected' is missing"),
        ({**GOOD, "rejected": None}, "column 'rejected' is null"),
        ({**GOOD, "rejected": "  "}, "empty completion"),
        ({**GOOD, "rejected": "Blue."}, "chosen and rejected are identical"),
        ({**GOOD, "rejected": float("nan")}, "rejected must be text or a list of messages"),
        ({**GOOD, "rejected": [{"from": "gpt", "value": "x"}]}, "a message must be"),
        ({**GOOD, "chosen": "\ud800"}, "chosen is not valid UTF-8"),
        ({**GOOD, "safety": 7}, "safety must be 'harmful' (0) or 'safe' (1), got 7"),
        ({**GOOD, "prompt": [{"role": "user", "content": 3}]}, "a message's content must be"),
    ],
)
def test_a_bad_row_is_an_error_that_names_it_or_a_counted_drop(tmp_path, row, said):
    path = lines(tmp_path / "a.jsonl", GOOD, "\n", row, GOOD)
    with pytest.raises(DataError) as error:
        list(load_examples(path))
    assert str(error.value).startswith("a.jsonl:3: ")
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    examples = load_examples(path, skip_bad=True)
    assert len(list(examples)) == 2
    ((why, drop),) = examples.report.dropped.items()
    assert (drop.count, drop.places) == (1, ["a.jsonl:3"])
    assert why.startswith(said.split(", got")[0])
    assert examples.report.rows == 3


@pytest.mark.parametrize(
    ("form", "change", "said"),
    [
        ("unpaired", {"label": "maybe"}, "label must be true or false"),
        ("scored", {"scores": [1, 1]}, "tie"),
        ("scored", {"scores": [1, float("inf")]}, "score must be finite"),
        ("scored", {"scores": [1, 10**400]}, "score must be finite"),
        ("scored", {"scores": [1]}, "differ in number"),
        ("kldo", {"safety": 2}, "safety must be"),
        ("kldo", {"acc_responses": []}, "acc_responses is an empty list"),
        ("kldo", {"acc_responses": "text"}, "acc_responses must be a list"),
        ("example", {"pairs": [[0, 9]]}, "does not name two"),
        ("example", {"completions": [3]}, "a completion must be an object"),
    ],
)
def test_what_a_form_does_not_allow(form, change, said):
    with pytest.raises(DataError, match=said):
        list(load_examples([{**FORMS[form].example, **change}]))


def test_drops_are_counted_by_reason_with_the_first_five_places(tmp_path):
    bad = {**GOOD, "rejected": ""}
    examples = load_examples(lines(tmp_path / "a.jsonl", *[bad] * 7, GOOD, "{"), skip_bad=True)
    assert len(list(examples)) == len(list(examples)) == 1  # and the report starts anew
    drops = examples.report.dropped
    assert drops["empty completion"].count == 7
    assert drops["empty completion"].places == [f"a.jsonl:{n}" for n in range(1, 6)]
    assert sum(drop.count for drop in drops.values()) + 1 == examples.report.rows == 9
    with pytest.raises(DataError, match="none of 2 rows"):
        list(load_examples([bad, bad], skip_bad=True, form="preference"))


def test_the_form_is_that_of_most_rows_where_bad_ones_are_left_out(tmp_path):
    """A first row without its prompt reads as another form; it is the bad one, not all others."""
    first = {name: text for name, text in GOOD.items() if name != "prompt"}
    path = lines(tmp_path / "a.jsonl", first, *[GOOD] * 3)
    examples = load_examples(path, skip_bad=True)
    assert len(list(examples)) == 3
    assert examples.form.name == "preference"
    assert examples.report.rows == 4


@pytest.mark.parametrize("skip_bad", [False, True])
@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b"", "no rows"),
        ("a.json", b"[]", "no rows"),
        ("a.csv", b"prompt,chosen,rejected\n", "no rows"),
        ("a.parquet", b"PAR?", "not a sound Parquet file"),
        ("a.jsonl.gz", gzip.compress(json.dumps(GOOD).encode() * 99, mtime=0)[:60], "cut off"),
        ("a.jsonl.gz", b"no gzip", "not a sound gzip file"),
        (
            "a.json",
            b'[{"text": "a"}, {"text": oops}, {}]',
            "a.json:row 2: not valid JSON",
        ),
        ("a.json", b'[{"text": "a"}, {"text": "b', "a.json:row 2: not valid JSON"),
        ("a.json", b'[{"text": "a"} {"text": "b"}]', "a comma"),
        ("a.json", b"[3]", "expected an object"),
        ("a.csv", b'prompt,completion\na,"b\nc,d\n', "a.csv:2: a quote is opened here"),
        ("a.csv", b"prompt,prompt\na,b\n", "comes twice"),
        ("a.txt", b"x", "cannot tell the file's type"),
    ],
)
def test_a_damaged_file_is_one_clear_error_even_when_bad_rows_are_skipped(
    tmp_path, name, content, said, skip_bad
):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as error:
        list(load_examples(tmp_path / name, skip_bad=skip_bad, form="sft"))
    assert said in str(error.value)


def test_bad_utf8_and_a_byte_order_mark(tmp_path):
    good = json.dumps(GOOD).encode()
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + good + b"\r\n" + good.replace(b"Blue", b"Bl\xfce") + b"\n")
    with pytest.raises(DataError, match=r"a\.jsonl:2: chosen is not valid UTF-8"):
        list(load_examples(path))
    path = tmp_path / "a.csv"
    path.write_bytes(b"\xef\xbb\xbfprompt,completion\na,b\r\na,\xfc\n")
    with pytest.raises(DataError, match=r"a\.csv:3: completion is not valid UTF-8"):
        list(load_examples(path))


def test_csv_rows_are_named_by_their_first_line(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('prompt,completion,label\n"a\nb",c,TRUE\nd,e,0\nf,g\nh,,1\n')
    examples = load_examples(path, skip_bad=True)
    assert [(e.id, e.completions[0].desirable) for e in examples] == [
        ("a.csv:2", True),
        ("a.csv:4", False),
    ]
    assert examples.report.dropped["wrong number of fields"].places == ["a.csv:5"]
    assert examples.report.dropped["empty completion"].places == ["a.csv:6"]


def test_csv_cells_may_be_long(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(f"text\n{'x' * 200_000}\n")
    assert len(next(iter(load_examples(path))).completions[0].content) == 200_000


@pytest.mark.parametrize(
    ("source", "options", "said"),
    [
        ("gone.jsonl", {}, "no such file"),
        ([GOOD], {"form": "preferense"}, "did you mean 'preference'"),
        ([GOOD], {"split": "test"}, "has no effect"),
        ([GOOD], {"name": "x"}, "has no effect"),
        ([GOOD], {"limit": 0}, "expected 1 or more"),
        ([], {}, "no rows"),
        (GOOD, {}, "one mapping"),
        (3, {}, "expected a path"),
        ([{"prompt": "a", "choosen": "b", "rejected": "c"}], {}, "did you mean 'choosen'"),
    ],
)
def test_what_cannot_be_a_source(source, options, said):
    with pytest.raises(DataError, match=said):
        list(load_examples(source, **options))


def test_a_directory_selects_by_split_where_names_tell_it(tmp_path):
    for name in ("train-00001.jsonl", "train-00000.jsonl", "test.jsonl"):
        lines(tmp_path / name, GOOD)
    (tmp_path / "README.md").write_text("notes")
    assert [e.id for e in load_examples(tmp_path)] == ["train-00000.jsonl:1", "train-00001.jsonl:1"]
    assert [e.id for e in load_examples(tmp_path, split="test")] == ["test.jsonl:1"]
    with pytest.raises(DataError, match="no file of split 'dev'; its file names tell test, train"):
        load_examples(tmp_path, split="dev")


def test_a_hub_id_is_streamed(monkeypatch):
    datasets = pytest.importorskip("datasets")
    asked = {}

    def load_dataset(*args, **options):
        asked.update(args=args, **options)
        return iter([GOOD])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    (example,) = load_examples("org/name", split="test", name="small")
    assert asked == {"args": ("org/name", "small"), "split": "test", "streaming": True}
    assert example.id == "org/name:test:row 1"


def test_data_sets_and_examples_in_memory():
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_list([GOOD, GOOD])
    assert len(list(load_examples(data))) == 2
    assert len(list(load_examples(datasets.DatasetDict(test=data), split="test"))) == 2
    examples = list(load_examples([GOOD]))
    assert list(load_examples(examples)) == examples


def test_a_generator_is_consumed_lazily_and_once():
    taken = []

    def rows():
        for number in range(1000):
            taken.append(number)
            yield GOOD

    examples = load_examples(rows())
    assert not taken
    assert examples.form.name == "preference"
    assert len(taken) == 1
    assert [e.id for e in islice(examples, 3)] == ["row 1", "row 2", "row 3"]
    assert len(taken) == 3
    with pytest.raises(DataError, match="used up"):
        list(examples)
    taken.clear()
    assert len(list(load_examples(rows(), limit=5))) == len(taken) == 5


def test_a_json_array_is_not_loaded_whole(tmp_path):
    import tracemalloc

    path = tmp_path / "big.json"
    row = json.dumps({"prompt": "q " * 500, "completion": "ä " * 500}, ensure_ascii=False)
    with path.open("w", encoding="utf-8") as file:
        file.write("[" + ",\n".join([row] * 10_000) + "]")
    tracemalloc.start()
    assert sum(1 for _ in load_examples(path)) == 10_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.stat().st_size > 20e6
    assert peak < 4e6


def test_objects_longer_than_a_chunk_and_json_lines_in_a_json_file(tmp_path):
    rows = [{"text": "x\\" * 100_000}, {"text": 'y"' * 70_000}, {"text": "z"}]
    for indent, name in ((None, "a.json"), (2, "b.json")):
        (tmp_path / name).write_text(json.dumps(rows, indent=indent))
        read = [e.completions[0].content for e in load_examples(tmp_path / name)]
        assert read == [row["text"] for row in rows]
    read = list(load_examples(lines(tmp_path / "c.json", *rows)))
    assert [e.id for e in read] == ["c.json:row 1", "c.json:row 2", "c.json:row 3"]


def test_optional_columns():
    row = {**GOOD, "reference_prompt": "Sky, safely?", "safety": "harmful", "more": 1}
    (example,) = load_examples([row])
    assert (example.reference_prompt, example.safety) == ("Sky, safely?", "harmful")


def test_an_explicit_form_overrides_detection():
    row = {**GOOD, "completion": "Blue.", "label": 1}
    assert detect(row).name in {"preference", "unpaired"}
    (example,) = load_examples([row], form="unpaired")
    assert example.completions[0].desirable is True
    assert not example.pairs


def test_kldo_prefers_the_refusal_of_harm_and_the_answer_to_safety():
    row = {"prompt": "q", "acc_responses": ["yes"], "rej_responses": ["no"]}
    harmful, safe = load_examples([{**row, "safety": 0}, {**row, "safety": 1}])
    assert [c.content for c in harmful.completions] == ["no", "yes"]
    assert [c.content for c in safe.completions] == ["yes", "no"]
    assert (harmful.safety, safe.safety) == ("harmful", "safe")
    assert harmful.pairs == safe.pairs == ((0, 1),)


def test_scores_prefer_the_best_to_the_worst():
    row = {"prompt": "q", "responses": ["a", "b", "c"], "scores": [1, 3, 2]}
    (example,) = load_examples([row])
    assert example.pairs == ((1, 0),)
    assert [c.score for c in example.completions] == [1.0, 3.0, 2.0]


def test_a_misspelled_column_is_not_passed_over():
    row = {"promt": "Sky?", "chosen": "Blue.", "rejected": "Green."}
    with pytest.raises(DataError, match=r"'promt' would not be read; did you mean 'prompt'"):
        list(load_examples([row]))
    assert len(list(load_examples([{**row, "prompt": "Sky?", "promt": "note"}]))) == 1


def test_preference_files_of_other_trainers_are_read():
    """LLaMA-Factory's and axolotl's columns, without being told which."""
    asked = {"from": "human", "value": "Sky?"}
    blue, green = ({"from": "gpt", "value": text} for text in ("Blue.", "Green."))
    rows = [
        {"instruction": "Sky?", "input": "", "chosen": "Blue.", "rejected": "Green."},
        {"system": "", "question": "Sky?", "chosen": "Blue.", "rejected": "Green."},
        {"instruction": "Sky?", "chosen_response": "Blue.", "rejected_response": "Green."},
        {"conversations": [asked], "chosen": blue, "rejected": green},
        {"messages": [{"role": "user", "content": "Sky?"}],
         "chosen": {"role": "assistant", "content": "Blue."},
         "rejected": {"role": "assistant", "content": "Green."}},
    ]  # fmt: skip
    read = [next(iter(load_examples([row]))) for row in rows]
    assert {(e.prompt, e.completions, e.pairs) for e in read} == {
        (read[0].prompt, read[0].completions, ((0, 1),))
    }
    assert read[0].prompt == (Message("user", "Sky?"),)
    (labeled,) = load_examples([{"conversations": [asked, green], "kto_tag": False}])
    assert labeled.completions[0].desirable is False
    examples = load_examples([{"system": "s", "conversations": [asked, green]}])
    assert [m.content for m in next(iter(examples)).prompt] == ["s", "Sky?"]
    assert not examples.report.unread
    whole = {
        "instruction": "a",
        "input": "b",
        "history": [["c", "d"]],
        "system": "s",
        "output": "e",
    }
    (example,) = load_examples([whole])
    assert [m.content for m in example.prompt] == ["s", "c", "d", "a\nb"]
    spoken = {"instruction": "Sky?", "chosen": '{"color": "blue"}', "rejected": "[]"}
    (example,) = load_examples([spoken])
    assert example.completions[0].content == (Message("assistant", '{"color": "blue"}'),)
    with pytest.raises(DataError, match="instruction must be text"):
        list(load_examples([{**whole, "instruction": ["a"]}]))


def test_r7_a_report_of_unread_columns_is_plain_data():
    """asdict of a Counter counts pairs: a table of such reports could not be written."""
    rows = [{"prompt": "Sky?", "chosen": "Blue.", "rejected": "Green.", "source": "x"}] * 3
    examples = load_examples(rows)
    assert len(list(examples)) == 3
    assert json.loads(json.dumps(examples.report.to_dict()))["unread"] == {"source": 3}


def test_a_prompt_that_only_later_rows_have_is_not_lost(tmp_path):
    """The first row settles the form: whole conversations, in which a later prompt was dropped."""
    first = {"chosen": "\n\nHuman: Sky?\n\nAssistant: Blue.",
             "rejected": "\n\nHuman: Sky?\n\nAssistant: Green."}  # fmt: skip
    path = tmp_path / "pairs.jsonl"
    later = {"prompt": "Sea?", "chosen": "Blue.", "rejected": "Red."}
    path.write_text("".join(json.dumps(row) + "\n" for row in (first, later)))
    with pytest.raises(DataError, match=r"pairs\.jsonl:2: this row has a prompt of its own"):
        list(load_examples(str(path)))
