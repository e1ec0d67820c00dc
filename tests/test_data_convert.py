"""Converting, inspecting and the command line on top of them."""

import json
import re

import pytest
from typer.testing import CliRunner

from tiny import tiny_tokenizer
from trueline.cli.data import app
from trueline.data import TARGETS, DataError, inspect_examples, load_examples, write_examples
from trueline.records import Completion, Example, Message

TYPES = [".jsonl", ".jsonl.gz", ".json", ".json.gz", ".csv", ".csv.gz", ".parquet"]
TEXT = [
    Example(
        "Sky?",
        (Completion('Blue, "they" say\nü'), Completion("Green.")),
        pairs=((0, 1),),
        reference_prompt="Sky, safely?",
        safety="safe",
        id="a:1",
    ),
    Example("Lock?", (Completion("No."), Completion("Yes.")), ((0, 1),), None, "harmful", "a:2"),
]
TALK = [
    Example(
        (Message("system", "Be kind."), Message("user", "Sky?")),
        ((Completion((Message("assistant", "Blue."),), score=0.5)),
         Completion((Message("assistant", "Green."),), desirable=False)),
        ((0, 1),), None, "safe", "b:1",
    )
]  # fmt: skip


def strip(examples):
    return [
        (e.prompt, tuple(c.content for c in e.completions), e.pairs, e.reference_prompt, e.safety)
        for e in examples
    ]


@pytest.mark.parametrize("data", [TEXT, TALK], ids=["text", "messages"])
@pytest.mark.parametrize("suffix", TYPES)
def test_the_own_form_keeps_everything(tmp_path, suffix, data):
    path = tmp_path / f"out{suffix}"
    report = write_examples(data, path)
    assert (report.rows, report.examples, report.left_out) == (len(data), len(data), 0)
    assert list(load_examples(path)) == data
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("data", [TEXT, TALK], ids=["text", "messages"])
@pytest.mark.parametrize("suffix", TYPES)
@pytest.mark.parametrize("form", ["preference", "kldo"])
def test_pairs_round_trip_through_every_form_that_holds_pairs(tmp_path, form, suffix, data):
    path = tmp_path / f"out{suffix}"
    write_examples(data, path, form)
    again = load_examples(path)
    assert again.form.name == form
    assert strip(again) == strip(data)


@pytest.mark.parametrize("form", TARGETS)
def test_what_is_written_is_recognized_as_what_it_is(tmp_path, form):
    path = tmp_path / "out.jsonl"
    report = write_examples(TEXT, path, form)
    assert load_examples(path).form.name == form
    assert report.rows == {"unpaired": 4}.get(form, 2)
    assert report.left_out == {"sft": 2}.get(form, 0)


def test_what_cannot_be_expressed_is_an_error_and_leaves_no_file(tmp_path):
    unpaired = [Example("q", (Completion("a", desirable=True),), id="u.jsonl:1")]
    path = tmp_path / "out.jsonl"
    for data, form, said in (
        ([*TEXT, *unpaired], "preference", "u.jsonl:1: no preference pair"),
        (unpaired, "kldo", "needs a safety label"),
        ([Example("q", (Completion("a"),))], "unpaired", "example 1: no label"),
        ([Example("q", (Completion("a", desirable=False),))], "sft", "no row to write"),
        (TEXT, "preferense", "did you mean 'preference'"),
    ):
        with pytest.raises(DataError, match=re.escape(said)):
            write_examples(data, path, form)
    with pytest.raises(DataError, match="cannot tell the file type"):
        write_examples(TEXT, tmp_path / "out.txt")
    with pytest.raises(DataError, match="either text or messages"):
        write_examples([*TEXT, *TALK], tmp_path / "out.parquet")
    assert not list(tmp_path.iterdir())


def test_a_file_is_replaced_only_when_asked_and_only_by_a_whole_one(tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_text("mine")
    with pytest.raises(DataError, match="the file exists"):
        write_examples(TEXT, path)
    with pytest.raises(DataError):
        write_examples([*TEXT, Example("q", (Completion("a"),))], path, "kldo", overwrite=True)
    assert path.read_text() == "mine"
    write_examples(TEXT, path, overwrite=True)
    assert list(load_examples(path)) == TEXT


def test_a_summary_counts_by_hand():
    rows = [
        {"prompt": "ab", "chosen": "long", "rejected": "no"},
        {"prompt": "ab", "chosen": "long", "rejected": "no"},  # a repeated row
        {"prompt": "ab", "chosen": "no", "rejected": "long"},  # its contradiction
        {"prompt": "c", "chosen": "same", "rejected": "size"},
        {"prompt": "c", "chosen": "x", "rejected": ""},  # dropped
    ]
    summary = inspect_examples(load_examples(rows, skip_bad=True))
    assert (summary.form, summary.rows, summary.examples, summary.pairs) == ("preference", 5, 4, 4)
    assert summary.duplicates == {"prompts": 2, "rows": 1, "contradictions": 1}
    prompt = summary.characters["prompt"]
    assert (prompt.min, prompt.median, prompt.mean, prompt.max) == (1, 2, 1.75, 2)
    longer = summary.rate("chosen_longer")
    assert (longer.value, longer.n) == (pytest.approx(2 / 3), 3)  # ties tell nothing
    assert summary.dropped["empty completion"] == {"count": 1, "places": ["row 5"]}
    assert any("1 of 5 rows" in sentence for sentence in summary.advice)
    assert any("the other way around" in sentence for sentence in summary.advice)


def test_advice_on_balance_bias_and_shortcuts():
    def advice(rows):
        return " ".join(inspect_examples(load_examples(rows)).advice)

    labeled = [{"prompt": f"q{i}", "completion": f"a{i}", "label": i < 4} for i in range(16)]
    assert "desirable_weight=3" in advice(labeled)
    assert "All labels are undesirable" in advice(labeled[4:])
    refusals = [
        {"prompt": f"q{i}", "safety": 1, "acc_responses": [f"answer {i}"], "rej_responses": ["No."]}
        for i in range(40)
    ]
    said = advice(refusals)
    assert "shortcut" in said
    assert "chosen answer is the longer one in 100%" in said
    assert "All labeled prompts are safe" in said
    assert not advice(
        [
            {"prompt": f"q{i}", "chosen": "ab"[i % 2] * (i + 1), "rejected": "c" * (20 - i)}
            for i in range(20)
        ]
    )


def test_token_lengths_come_from_the_encoder_given():
    class Branch:
        ids = (1, 2, 3)

    class Tree:
        prompt = (1, 2)
        branches = (Branch(), Branch())

    summary = inspect_examples(TEXT, encode=lambda example: Tree())
    assert summary.tokens["prompt"].max == 2
    assert summary.tokens["rejected"].n == 2
    assert summary.tokens["chosen"].mean == 3


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "in.jsonl"
    rows = [{"prompt": "[bold]q", "chosen": "a", "rejected": "b"}, {"prompt": "q", "chosen": "a"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_cli_inspect(source):
    done = CliRunner().invoke(app, ["inspect", str(source), "--skip-bad", "--json"])
    assert done.exit_code == 0
    document = json.loads(done.stdout)
    assert (document["rows"], document["examples"], document["form"]) == (2, 1, "preference")
    assert document["dropped"]["column 'rejected' is missing"]["places"] == ["in.jsonl:2"]
    done = CliRunner().invoke(app, ["inspect", str(source), "--skip-bad"])
    assert done.exit_code == 0
    assert "bold" not in done.output, "R13: no row's text unless asked for"
    done = CliRunner().invoke(app, ["inspect", str(source), "--skip-bad", "--show"])
    assert "PROMPT [bold]q" in done.stdout
    assert "REJECTED b" in done.stdout


def test_r13_inspect_shows_a_row_token_by_token_when_asked(tmp_path):
    model, rows = tmp_path / "model", tmp_path / "rows.jsonl"
    tiny_tokenizer().save_pretrained(model)
    row = {"prompt": "why ?", "chosen": "because yes", "rejected": "no </s>", "margin": 1}
    rows.write_text(json.dumps(row) + "\n")
    asked = ["inspect", str(rows), "--model", str(model)]
    done = CliRunner().invoke(app, [*asked, "--show"])
    assert done.exit_code == 0, done.output
    assert "PROMPT 3 tokens, 0 scored" in done.stdout
    assert "CHOSEN 3 tokens, 3 scored" in done.stdout
    assert "spells control tokens" in done.stdout
    assert "margin (1 rows)" in done.stdout
    document = json.loads(CliRunner().invoke(app, [*asked, "--show", "--json"]).stdout)
    chosen = document["shown"]["tokens"][1]
    assert [(t["text"], t["scored"]) for t in chosen["tokens"]][-1] == (" </s>", True)
    assert document["unread"] == {"margin": 1}
    assert "shown" not in json.loads(CliRunner().invoke(app, [*asked, "--json"]).stdout)
    quiet = CliRunner().invoke(app, asked)
    assert "because" not in quiet.output
    assert CliRunner().invoke(app, [*asked, "--show", "--row", "2"]).exit_code


def test_r7_tools_and_tool_calls_survive_a_round_trip(tmp_path):
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "clock"}}]}
    row = {
        "messages": [{"role": "user", "content": "Time?"}, call],
        "tools": json.dumps([{"type": "function", "function": {"name": "clock"}}]),
        "chat_template_kwargs": {"enable_thinking": False},
    }
    (example,) = load_examples([row])
    assert example.template["tools"][0]["function"]["name"] == "clock"
    assert example.template["enable_thinking"] is False
    assert example.completions[0].content[0].to_dict() == call
    write_examples([example], tmp_path / "out.jsonl")
    assert list(load_examples(tmp_path / "out.jsonl")) == [example]
    with pytest.raises(DataError, match=r"tool_calls.*write \.jsonl"):
        write_examples([example], tmp_path / "out.parquet")


@pytest.mark.parametrize("column", ["images", "video"])
def test_r7_pictures_are_refused_by_name(column):
    row = {"prompt": "Sky?", "chosen": "Blue.", "rejected": "Green.", column: ["a.png"]}
    with pytest.raises(DataError, match=f"column '{column}' is not text"):
        list(load_examples([row]))
    part = [{"role": "user", "content": [{"type": "image"}]}]
    with pytest.raises(DataError, match="part of type 'image'"):
        list(load_examples([{"prompt": part, "chosen": "Blue.", "rejected": "Green."}]))


def test_r7_every_column_that_is_not_read_is_counted():
    row = {"prompt": "Sky?", "chosen": "Blue.", "rejected": "Green.", "margin": 1, "note": None}
    examples = load_examples([row, {**row, "note": "x"}])
    summary = inspect_examples(examples)
    assert summary.unread == {"margin": 2, "note": 1}


def test_cli_convert(source, tmp_path):
    out = tmp_path / "out.csv"
    asked = ["convert", str(source), str(out), "--to", "unpaired", "--skip-bad", "--json"]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0
    document = json.loads(done.stdout)
    assert (document["rows"], document["examples"], document["read"]["rows"]) == (2, 1, 2)
    assert [e.completions[0].desirable for e in load_examples(out)] == [True, False]
    again = CliRunner().invoke(app, asked)
    assert isinstance(again.exception, DataError)  # the application prints it and exits with 2
    assert CliRunner().invoke(app, [*asked, "--overwrite"]).exit_code == 0


def test_cli_bad_input_is_one_line_and_exit_code_2(source, monkeypatch, capsys):
    from trueline.cli import main

    monkeypatch.setattr("sys.argv", ["trueline", "data", "inspect", str(source)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.strip().startswith("error: in.jsonl:2: column 'rejected' is missing")
