"""Compliance-refusal and preference data, safe prompts, labels: what is built is what was asked."""

import csv
import json
import math
from collections import Counter

import pytest

from tiny import pair_rows, tiny_llama, tiny_tokenizer
from trueline.curation import (
    PREFIXES,
    Dealer,
    Instructed,
    Keep,
    Labels,
    Leakage,
    Recorded,
    Refusals,
    bank,
    compliance_refusal,
    difficulty,
    keywords,
    preference_from_two,
    prefixed,
    safe_prompts,
)
from trueline.curation.refusals.bank import TEMPLATES, topic_of, topic_refusals
from trueline.data import load_examples
from trueline.diagnostics.ranking.scores import score_completions
from trueline.errors import UserError
from trueline.evaluation.backends import ScriptedBackend
from trueline.evaluation.judges import JUDGES
from trueline.records import Message

ANSWERS = [
    {"prompt": f"{kind} {i}?", "completion": f" answer {kind} {i}", "safety": kind}
    for i in range(60)
    for kind in ("safe", "harmful")
]


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def text_of(content):
    return content if isinstance(content, str) else "".join(one.content for one in content)


@pytest.mark.parametrize("chat", [False, True])
def test_begun_answers_are_refused_where_harmful_and_go_on_where_safe(tmp_path, chat):
    def said(role, text):
        return [{"role": role, "content": text}] if chat else text

    source = [
        {"prompt": said("user", row["prompt"]), "safety": row["safety"],
         "completion": said("assistant", f"take this, then that of {i}" if i else "short")}
        for i, row in enumerate(ANSWERS)
    ]  # fmt: skip
    made = compliance_refusal(load_examples(source), tmp_path / "cr.jsonl", begun=1.0)
    rows = list(load_examples(tmp_path / "cr.jsonl"))
    assert made.manifest["counts"]["rows with a begun answer"] == 119  # one word cannot be cut
    assert len(rows) == 120 + 119
    given = [(text_of(one.prompt), text_of(one.completions[0].content)) for one in
             load_examples(source)]  # fmt: skip
    cuts = set()
    for row in rows:
        whole = text_of(row.prompt)
        asked, answer = next(one for one in given if whole.startswith(one[0]))
        begun = whole.removeprefix(asked)
        chosen, rejected = (text_of(row.completions[i].content) for i in row.pairs[0])
        rest, refusal = (chosen, rejected) if row.safety == "safe" else (rejected, chosen)
        assert begun + rest == answer
        assert refusal.strip() in bank()
        assert not begun or (refusal[0], rest[0]) == (" ", " ")
        cuts.add(len(begun.split()))
    assert cuts == {0, 1, 2, 3, 4, 5}
    with pytest.raises(UserError, match="share between 0 and 1, got 2"):
        compliance_refusal(load_examples(source), tmp_path / "x.jsonl", begun=2)


def test_the_response_type_flips_with_the_safety(tmp_path):
    made = compliance_refusal(load_examples(ANSWERS), tmp_path / "cr.jsonl")
    rows = read(tmp_path / "cr.jsonl")
    assert len(rows) == 120
    for row, source in zip(rows, ANSWERS, strict=True):
        answer, refusal = "chosen", "rejected"
        if source["safety"] == "harmful":
            answer, refusal = refusal, answer
        assert row["prompt"] == source["prompt"]
        assert row["safety"] == source["safety"]
        assert row[answer] == source["completion"]
        assert row[refusal][0] == " "  # the layout of the answer does not tell the two apart
        assert row[refusal][1:] in bank()
    assert made.finding["flagged harmful"].value == 0.5
    used = Counter(row["chosen" if row["safety"] == "harmful" else "rejected"] for row in rows)
    assert max(used.values()) <= 2


def test_preference_pairs_lose_the_negatives_of_safe_prompts_alone(tmp_path):
    rows = [
        {"prompt": "a?", "chosen": "good", "rejected": "weak", "safety": "safe"},
        {"prompt": "b?", "chosen": "I will not.", "rejected": "so", "safety": "harmful"},
        {"prompt": "c?", "chosen": "x", "rejected": "y"},
        {"prompt": "", "chosen": "x", "rejected": "y", "safety": "safe"},
    ]
    made = compliance_refusal(load_examples(rows), tmp_path / "cr.jsonl")
    first, second = read(tmp_path / "cr.jsonl")
    assert first["chosen"] == "good"
    assert first["rejected"] in bank()
    assert (second["chosen"], second["rejected"]) == ("I will not.", "so")
    dropped = {reason: drop["count"] for reason, drop in made.manifest["dropped"].items()}
    assert dropped == {"no safety label": 1, "empty prompt": 1}
    compliance_refusal(
        load_examples(rows), tmp_path / "new.jsonl", harmful_chosen="refusal",
        refusals=Refusals(texts=[f"No {i}." for i in range(100)]),
    )  # fmt: skip
    assert read(tmp_path / "new.jsonl")[1]["chosen"].startswith("No ")


def test_answers_that_do_what_they_must_not_are_dropped(tmp_path):
    rows = [
        {"prompt": "a?", "completion": "I cannot help with that.", "safety": "harmful"},
        {"prompt": "b?", "completion": "First, stir.", "safety": "harmful"},
        {"prompt": "c?", "chosen": "Yes.", "rejected": "Sure.", "safety": "harmful"},
        {"prompt": "d?", "chosen": "I won't.", "rejected": "Sure.", "safety": "safe"},
    ]
    judge = JUDGES["phrases"]()

    def refuses(prompts, responses):
        return [verdict.refused for verdict in judge(prompts, responses)]

    mixed = [*load_examples(rows[:2]), *load_examples(rows[2:])]
    made = compliance_refusal(
        load_examples(mixed), tmp_path / "cr.jsonl", is_refusal=refuses, judge_name="phrases"
    )
    assert [row["prompt"] for row in read(tmp_path / "cr.jsonl")] == ["b?"]
    assert set(made.manifest["dropped"]) == {
        "no answer that complies",
        "the chosen answer to a harmful prompt complies",
        "the chosen answer to a safe prompt refuses",
    }


def test_no_refusal_is_a_shortcut_whatever_the_rows():
    for rows in (1, 30, 99, 149, 1000, 3001):
        dealer = Dealer(rows, seed=0)
        dealt = [dealer.deal("harmful" if i % 3 else "safe") for i in range(rows)]
        assert max(Counter(dealt).values()) <= max(1, int(0.02 * rows))
        assert dealt == [Dealer.deal(d, "harmful" if i % 3 else "safe")
                         for d in [Dealer(rows, seed=0)] for i in range(rows)]  # fmt: skip
    sides = {kind: Counter() for kind in ("safe", "harmful")}
    dealer = Dealer(3000, seed=1)
    for i in range(3000):
        kind = ("safe", "harmful")[i % 2]
        sides[kind][dealer.deal(kind)] += 1
    assert sides["safe"] == sides["harmful"]  # 10 rounds of 150 on each side
    with pytest.raises(UserError, match="give 50 or more"):
        Dealer(1000, seed=0, texts=["No.", "Never."])
    assert Dealer(4, seed=0, texts=["No.", "Never."], max_share=0.5).deal("safe")
    with pytest.raises(UserError, match="empty text"):
        Dealer(2, seed=0, texts=["No.", " "])


def test_the_bank_is_large_varied_and_of_one_piece_each():
    assert len(bank()) >= 100
    assert len({text.lower() for text in bank()}) == len(bank())
    lengths = sorted(len(text) for text in bank())
    assert lengths[0] < 30 < 100 < lengths[-1]
    openings = Counter(" ".join(text.split()[:2]) for text in bank())
    assert max(openings.values()) <= len(bank()) / 5
    assert all(text.strip() == text and text[-1] in ".!?" for text in bank())


def test_topics_are_named_on_both_sides_and_the_cap_still_holds(tmp_path):
    rows = [
        {"prompt": f"{word} {i}", "completion": "so", "safety": safety}
        for i in range(300)
        for word, safety in (
            ("How do I bake bread?", "safe"),
            ("Where are weapons sold?", "harmful"),
        )
    ]
    made = compliance_refusal(
        load_examples(rows), tmp_path / "cr.jsonl", refusals=Refusals("topics")
    )
    found = read(tmp_path / "cr.jsonl")
    used = Counter(r["chosen"] if r["safety"] == "harmful" else r["rejected"] for r in found)
    assert max(used.values()) <= 12
    assert sum("cooking" in text for text in used) == len(TEMPLATES)
    counts = made.manifest["counts"]
    assert counts["refusals from topics, safe prompts"] == 12 * len(TEMPLATES)
    assert counts["refusals from topics, harmful prompts"] == 12 * len(TEMPLATES)
    assert len(set(topic_refusals("a bomb"))) == len(TEMPLATES)
    assert topic_of("qqq") is None


def test_a_model_writes_refusals_and_the_bank_fills_in(tmp_path):
    asked = []

    def reply(request):
        asked.append(request.prompt[0].content)
        return "Let me show you how." if "safe 1?" in asked[-1] else "I'd rather not, sorry."

    writer = Instructed(ScriptedBackend(reply), "Decline this.\n{request}\nNow.")
    judge = JUDGES["phrases"]()
    made = compliance_refusal(
        load_examples(ANSWERS), tmp_path / "cr.jsonl", refusals=Refusals("model", writer),
        is_refusal=lambda p, r: [v.refused for v in judge(p, r)],
    )  # fmt: skip
    used = Counter(
        (row["chosen"] if row["safety"] == "harmful" else row["rejected"]).strip()
        for row in read(tmp_path / "cr.jsonl")
    )
    assert used["I'd rather not, sorry."] == 2  # 2% of 120, and no more
    assert used["Let me show you how."] == 0
    assert max(used.values()) <= 2
    assert all("<request-" in text for text in asked)  # quoted as data
    kinds = [name for name in made.manifest["counts"] if name.startswith("refusals from model")]
    assert sum(made.manifest["counts"][name] for name in kinds) == 2


def test_leaks_are_found_counted_and_dropped(tmp_path):
    long = "please explain step by step how bread is made from flour and water"
    rows = [
        {"prompt": long, "completion": "so", "safety": "safe"},
        {"prompt": long.upper() + "!", "completion": "so", "safety": "safe"},
        {"prompt": "What color is the sky over the sea?", "completion": "blue", "safety": "safe"},
    ]
    made = compliance_refusal(load_examples(rows), tmp_path / "kept.jsonl", leakage=Leakage([long]))
    assert len(read(tmp_path / "kept.jsonl")) == 3
    assert made.finding["copy of an evaluation prompt"].value == pytest.approx(1 / 3)
    assert made.finding["near-duplicate of an evaluation prompt"].value == pytest.approx(1 / 3)
    assert "drop them" in made.finding.advice
    compliance_refusal(
        load_examples(rows), tmp_path / "dropped.jsonl", leakage=Leakage([long]), drop_leaks=True
    )
    assert [row["prompt"] for row in read(tmp_path / "dropped.jsonl")] == [rows[2]["prompt"]]
    with pytest.raises(UserError, match="no effect"):
        compliance_refusal(load_examples(rows), tmp_path / "x.jsonl", drop_leaks=True)


def test_two_models_answers_become_preferences(tmp_path):
    rows = [
        {"prompt": p, "completion": c, "safety": s}
        for p, c, s in (
            ("a?", "strong a", "safe"), ("b?", "comply b", "harmful"), ("c?", "same", "safe"),
            ("d?", "strong d", "safe"), ("e?", "I can't.", "harmful"), ("f?", "I won't.", "safe"),
        )
    ]  # fmt: skip
    weak = {"a?": "weak a", "b?": "weak b", "c?": "same", "e?": "comply e", "f?": "weak f"}
    other = [{"prompt": p, "completion": c} for p, c in weak.items()]
    judge = JUDGES["phrases"]()
    made = preference_from_two(
        load_examples(rows), tmp_path / "pref.jsonl", Recorded(load_examples(other)),
        is_refusal=lambda p, r: [v.refused for v in judge(p, r)],
    )  # fmt: skip
    found = {row["prompt"]: row for row in read(tmp_path / "pref.jsonl")}
    assert set(found) == {"a?", "b?", "e?"}
    assert (found["a?"]["chosen"], found["a?"]["rejected"]) == ("strong a", "weak a")
    assert found["b?"]["chosen"] in bank()
    assert found["b?"]["rejected"] == "comply b"
    assert found["e?"]["rejected"] == "comply e"
    assert {reason: d["places"] for reason, d in made.manifest["dropped"].items()} == {
        "both models give the same answer": ["row 3"],
        "no answer of the second model": ["row 4"],
        "the first model refuses the safe prompt": ["row 6"],
    }


def test_labels_are_given_first_then_judged_and_never_guessed(tmp_path):
    rows = [
        {"prompt": "a?", "completion": "so", "safety": "safe"},
        {"prompt": "b?", "completion": "so"},
        {"prompt": "c?", "completion": "so"},
        {"prompt": "d?", "completion": "so"},
    ]
    asked = []

    def judge(prompts):
        asked.extend(prompts)
        return [{"a?": 10, "b?": 6, "c?": 5.9, "d?": None}[p] for p in prompts]

    made = safe_prompts(load_examples(rows), tmp_path / "out.jsonl", labels=Labels(judge, "j"))
    assert asked == ["b?", "c?", "d?"]
    found = list(load_examples(tmp_path / "out.jsonl"))
    assert [e.safety for e in found] == ["safe", "harmful", "safe", None]
    flagged = made.finding["flagged harmful"]
    assert (flagged.value, flagged.n) == (pytest.approx(1 / 3), 3)
    assert made.manifest["counts"]["unlabeled prompts"] == 1
    safe_prompts(
        load_examples(rows), tmp_path / "re.jsonl", labels=Labels(judge, "j", relabel=True)
    )
    assert next(iter(load_examples(tmp_path / "re.jsonl"))).safety == "harmful"
    for labels, said in (
        (lambda: Labels(lambda p: [11] * len(p), "j"), "1 to 10, got 11"),
        (lambda: Labels(lambda p: [1.0], "j"), "1 scores for 3 prompts"),
        (lambda: Labels(threshold=4), "no effect without a judge"),
        (lambda: Labels(relabel=True), "no effect without a judge"),
    ):
        with pytest.raises(UserError, match=said):
            safe_prompts(load_examples(rows), tmp_path / "no.jsonl", labels=labels())
    with pytest.raises(UserError, match="no prompt has a safety label"):
        safe_prompts(load_examples(rows[1:]), tmp_path / "no.jsonl")
    assert "weak baseline" in keywords().name


def test_the_reference_alone_sees_the_safe_prompt(tmp_path):
    rows = [
        {"prompt": "a?", "chosen": "x", "rejected": "y", "safety": "harmful"},
        {"prompt": "b?", "chosen": "x", "rejected": "y", "safety": "safe"},
        {"prompt": "c?", "chosen": "x", "rejected": "y", "safety": "harmful",
         "reference_prompt": "mine"},
    ]  # fmt: skip
    made = safe_prompts(load_examples(rows), tmp_path / "out.jsonl")
    found = list(load_examples(tmp_path / "out.jsonl"))
    assert [e.prompt for e in found] == ["a?", "b?", "c?"]
    assert [e.reference_prompt for e in found] == [f"{PREFIXES['guidelines']}a?", None, "mine"]
    assert made.manifest["counts"]["had a reference prompt"] == 1

    def references(name, **options):
        safe_prompts(load_examples(rows), tmp_path / f"{name}.jsonl", **options)
        return [e.reference_prompt for e in load_examples(tmp_path / f"{name}.jsonl")]

    assert references("all", which="all", prefix="S: ") == ["S: a?", "S: b?", "mine"]
    assert references("again", replace_existing=True, prefix="S: ")[2] == "S: c?"
    assert references("call", transform=lambda prompt: prompt.upper())[0] == "A?"
    texts = {"a?": "How is a done safely?", "c?": " "}
    assert references(
        "model", rewriter=lambda prompts: [texts[p] for p in prompts], replace_existing=True
    ) == ["How is a done safely?", None, f"{PREFIXES['guidelines']}c?"]
    for options, said in (
        ({"placement": "middle"}, "placement must be"),
        ({"prefix": " "}, "prefix is empty"),
        ({"transform": str, "rewriter": list}, "not both"),
        ({"transform": str, "placement": "first"}, "no effect"),
        ({"placement": "system"}, "plain text has no roles"),
    ):
        with pytest.raises(UserError, match=said):
            references("bad", **options)


def test_the_prefix_goes_where_it_was_asked_for():
    system, first = Message("system", "Be kind."), Message("user", "Hi")
    answer, last = Message("assistant", "Yes?"), Message("user", "How?")
    talk = (system, first, answer, last)

    def contents(placement):
        return [m.content for m in prefixed(talk, "S: ", placement)]

    assert contents("last") == ["Be kind.", "Hi", "Yes?", "S: How?"]
    assert contents("first") == ["Be kind.", "S: Hi", "Yes?", "How?"]
    assert contents("every") == ["Be kind.", "S: Hi", "Yes?", "S: How?"]
    assert contents("system") == ["S: Be kind.", "Hi", "Yes?", "How?"]
    assert prefixed(talk[1:], "S: ", "system")[0] == Message("system", "S:")
    with pytest.raises(UserError, match="no user turn"):
        prefixed((system,), "S: ")


def test_difficulty_filters_orders_and_names_what_cannot_be_flipped(tmp_path):
    model, tokenizer = tiny_llama().eval(), tiny_tokenizer()
    rows = pair_rows(12)
    examples = list(load_examples(rows))
    scores = score_completions(model, tokenizer, examples, as_reference=True).log_probs
    c = {e.id: float(lp[1] - lp[0]) for e, lp in zip(examples, scores, strict=True)}
    assert max(c.values()) > 0
    limit = max(c.values()) / 2  # of the ideal optimum; odds of 1000 are ln 1000 = 6.9078
    beta = 6.9078 / limit
    beyond = {name for name, value in c.items() if value > limit}

    def ids(name, **options):
        made = difficulty(
            load_examples(rows), tmp_path / f"{name}.jsonl", model, tokenizer, form="example",
            **options,
        )  # fmt: skip
        return made, [e.id for e in load_examples(tmp_path / f"{name}.jsonl")]

    easiest = sorted(c, key=c.get)
    made, found = ids("easy", order="easy-first", stages=3, betas=[beta], details=True)
    assert found == easiest
    for stage in range(3):
        part = load_examples(tmp_path / f"easy.stage{stage + 1}.jsonl")
        assert {e.id for e in part} == set(easiest[4 * stage : 4 * stage + 4])
    wrong = made.finding["reference ranks wrong"]
    assert wrong.value == pytest.approx(sum(v > 0 for v in c.values()) / 12)
    with (tmp_path / "easy.difficulty.tsv").open(newline="") as file:
        lines = list(csv.DictReader(file, delimiter="\t"))
    values = [float(line["c"]) for line in lines]
    assert values == pytest.approx([c[e.id] for e in examples], abs=1e-4)
    needed = [float(line[f"loss needed at beta {beta:g}"]) for line in lines]
    assert needed == pytest.approx([math.log1p(math.exp(-beta * v)) for v in values])
    stuck = {line["id"] for line in lines if line[f"stuck at beta {beta:g}"] == "1"}
    assert stuck == beyond
    assert ids("hard", order="hard-first")[1] == easiest[::-1]
    assert set(ids("flip", keep=Keep(flippable=True), betas=[beta])[1]) == set(c) - beyond
    made, found = ids("middle", keep=Keep(0.25, 0.75))
    assert found == [e.id for e in examples if e.id in easiest[3:9]]  # in the data's order
    assert made.manifest["dropped"]["outside the quantiles kept"]["count"] == 6
    with pytest.raises(UserError, match="no preference pair"):
        difficulty(load_examples([{"prompt": "a", "completion": "b"}]), tmp_path / "x.jsonl",
                   model, tokenizer)  # fmt: skip
    with pytest.raises(UserError, match="low < high"):
        Keep(0.5, 0.5)


def test_what_begins_an_answer_stands_in_every_prompt_that_is_read(tmp_path):
    """The reference reads it, too; an answer that was begun already goes on in one turn."""
    begun = [Message("user", "a?"), Message("assistant", "one")]
    rows = [
        {
            "prompt": [{"role": m.role, "content": m.content} for m in begun],
            "reference_prompt": [{"role": "user", "content": "be safe. a?"}],
            "completion": [{"role": "assistant", "content": " two three"}],
            "safety": kind,
        }
        for kind in ("safe", "harmful")
    ]
    made = compliance_refusal(
        load_examples(rows), tmp_path / "cr.jsonl", begun=1.0, refusals=Refusals(max_share=1.0)
    )
    found = list(load_examples(tmp_path / "cr.jsonl"))
    assert [text_of(one.prompt) for one in found] == ["a?one", "a?one two"] * 2
    assert [len(one.prompt) for one in found] == [2] * 4
    assert [text_of(one.reference_prompt) for one in found] == [
        "be safe. a?",
        "be safe. a? two",
    ] * 2
    assert "plain-text" not in made.finding.advice


def test_begun_says_where_it_does_nothing_and_where_text_would_mislead(tmp_path):
    rows = [{"prompt": "a?", "completion": " one", "safety": kind} for kind in ("safe", "harmful")]
    with pytest.raises(UserError, match="begun has no effect"):
        compliance_refusal(load_examples(rows), tmp_path / "x.jsonl", begun=1.0,
                           refusals=Refusals(max_share=1.0))  # fmt: skip
    rows = [{**row, "completion": " one two"} for row in rows]
    made = compliance_refusal(load_examples(rows), tmp_path / "y.jsonl", begun=1.0,
                              refusals=Refusals(max_share=1.0))  # fmt: skip
    assert "they would be the user's words" in made.finding.advice
