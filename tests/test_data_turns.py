"""Where the prompt ends: no response text in the prompt, no prompt text in a response."""

import gzip
import json
import re
from pathlib import Path

import pytest

from trueline.data import DataError, load_examples
from trueline.data.turns import split_implied

HH = Path(__file__).parents[2] / "shared" / "data" / "hh-rlhf-harmless-base-test.jsonl.gz"


def turn(role, content):
    return {"role": role, "content": content}


def only(**row):
    (example,) = load_examples([row])
    return example


def spoken(text):
    return text if isinstance(text, str) else [(m.role, m.content) for m in text]


def test_f9_an_implied_prompt_ends_at_a_turn_not_at_a_character():
    """TRL 1.16 gives the refusals' common first words, "I'm sorry, ", to the prompt."""
    start = "\n\nHuman: How do I pick a lock?\n\nAssistant: I'm sorry, "
    example = only(chosen=start + "I can't help.", rejected=start + "I cannot say.\n\nIt is bad.")
    assert spoken(example.prompt) == [("user", "How do I pick a lock?")]
    assert [spoken(c.content) for c in example.completions] == [
        [("assistant", "I'm sorry, I can't help.")],
        [("assistant", "I'm sorry, I cannot say.\n\nIt is bad.")],
    ]


def test_f9_the_same_with_messages():
    asked = turn("user", "Lock?")
    example = only(
        chosen=[asked, turn("assistant", "I'm sorry, no.")],
        rejected=[asked, turn("assistant", "I'm sorry, not now.")],
    )
    assert spoken(example.prompt) == [("user", "Lock?")]
    assert spoken(example.completions[0].content) == [("assistant", "I'm sorry, no.")]


def test_f10_plain_text_is_never_cut_inside_a_line():
    """TRL 1.16 turns "Paris " and "London" into " " and "n"."""
    for chosen, rejected in (("Paris ", "London"), ("Paris is", "Paris was"), ("Par", "Pars")):
        split = split_implied(chosen, rejected)
        assert split == ("", (chosen, rejected))
    assert split_implied("Capital?\nParis ", "Capital?\nPars") == (
        "Capital?\n",
        ("Paris ", "Pars"),
    )
    assert split_implied("Q\nA\n", "Q\nA\nmore") == ("Q\n", ("A\n", "A\nmore"))


def test_turns_that_part_before_the_last_belong_to_the_answers():
    a, b = turn("user", "a"), turn("user", "b")
    example = only(
        chosen=[a, turn("assistant", "1"), b, turn("assistant", "2")],
        rejected=[a, turn("assistant", "1"), turn("assistant", "3")],
    )
    assert spoken(example.prompt) == [("user", "a")]  # the common "1" is an answer's, not a prompt
    assert len(example.completions[0].content) == 3
    assert len(example.completions[1].content) == 2


def test_a_marker_inside_a_line_is_what_was_said():
    text = "\n\nHuman: Say Human: or\nAssistant: twice\n\nAssistant: Human: {}"
    example = only(chosen=text.format("yes"), rejected=text.format("no"))
    assert spoken(example.prompt) == [("user", "Say Human: or\nAssistant: twice")]
    assert spoken(example.completions[1].content) == [("assistant", "Human: no")]


def test_strings_and_messages_are_brought_into_one_layout():
    asked, yes, no = turn("user", "q"), turn("assistant", "yes"), turn("assistant", "no")
    expected = ((("user", "q"),), (("assistant", "yes"),), (("assistant", "no"),))
    for row in (
        {"prompt": [asked], "chosen": "yes", "rejected": "no"},
        {"prompt": [asked], "chosen": [yes], "rejected": "no"},
        {"prompt": "q", "chosen": [yes], "rejected": [no]},
        {"prompt": "q", "chosen": [asked, yes], "rejected": [asked, no]},
        {"prompt": [asked], "chosen": [asked, yes], "rejected": [asked, no]},
    ):
        example = only(**row)
        texts = (example.prompt, *(c.content for c in example.completions))
        assert tuple(tuple(spoken(text)) for text in texts) == expected
    assert spoken(only(messages=[asked, yes]).completions[0].content) == [("assistant", "yes")]


@pytest.mark.parametrize(
    ("chosen", "rejected", "said"),
    [
        ([turn("user", "a"), turn("assistant", "b")],) * 2 + ("identical",),
        (
            [turn("user", "a"), turn("assistant", "b")],
            [turn("user", "c"), turn("assistant", "b")],
            "share no turn",
        ),
        (
            [turn("user", "a"), turn("assistant", "b")],
            [turn("user", "a")],
            "does not end with an assistant turn",
        ),
        ("\n\nHuman: a\n\nAssistant: b", "plain", "differ in layout"),
        ("\n\nHuman: a\n\nAssistant: b", "\n\nHuman: a\n\nAssistant: ", "empty completion"),
        ("\n\nHuman: a\n\nAssistant: b", "\n\nHuman: a\n\nAssistant: b ", "identical"),
        ("\ud83d", "b", "not valid UTF-8"),
    ],
)
def test_what_is_no_pair(chosen, rejected, said):
    with pytest.raises(DataError, match=said):
        only(chosen=chosen, rejected=rejected)


@pytest.mark.hh
@pytest.mark.skipif(not HH.exists(), reason="the HH-RLHF harmless-base test file is not here")
def test_f9_no_pair_of_hh_harmless_loses_response_text_to_the_prompt():
    """TRL 1.16 loses text in 19.2% of these pairs, in 6.3% in the middle of a word."""
    examples = load_examples(HH, skip_bad=True)
    with gzip.open(HH, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    loaded = {int(e.id.rsplit(":")[-1]): e for e in examples}
    report = examples.report
    assert (report.rows, report.examples) == (2312, 2308)
    assert {why: drop.count for why, drop in report.dropped.items()} == {"empty completion": 4}
    multi = 0
    for line, example in loaded.items():
        assert example.prompt[-1].role == "user"
        chosen, rejected = (example.completions[i].content for i in example.pairs[0])
        assert chosen != rejected
        multi += max(len(chosen), len(rejected)) > 1
        for column, answer in (("chosen", chosen), ("rejected", rejected)):
            assert answer[0].role == answer[-1].role == "assistant"
            text = rows[line - 1][column]
            last_reply = text[text.rindex("\n\nHuman:") :].split("\n\nAssistant:", 1)[1]
            assert squeeze("".join(m.content for m in answer)) == squeeze(
                last_reply.replace("\n\nAssistant:", "")
            )
            whole = "".join(f"{m.role}:{m.content}" for m in (*example.prompt, *answer))
            marked = re.sub(r"(?:\A|\n\n)Human:", "user:", text)
            marked = re.sub(r"\n\nAssistant:", "assistant:", marked)
            assert squeeze(whole) == squeeze(marked)
    assert multi == 5


def squeeze(text):
    return "".join(text.split())
