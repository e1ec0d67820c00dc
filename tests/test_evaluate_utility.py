"""Utility: MT-Bench, win rates in both orders, perplexity and KL against independent truths."""

import json
import math
import re

import numpy as np
import pytest
import torch

from evaluate_server import chat_server
from tiny import tiny_llama, tiny_tokenizer
from trueline.errors import UserError
from trueline.evaluation.attacks import open_attack
from trueline.evaluation.backends import Decoding, Request, ScriptedBackend
from trueline.evaluation.backends.local import TransformersBackend
from trueline.evaluation.harness.setup import Setup
from trueline.evaluation.utility import UTILITIES, UtilityContext
from trueline.evaluation.utility.win_rate import Duel, length_adjusted, read_choice
from trueline.records import Message


def context(tmp_path, backend, **changes):
    setup = Setup(backend, {}, {}, [open_attack("direct")], Decoding(8), **changes)
    return UtilityContext(setup, tmp_path, tmp_path, lambda title: lambda done, total: None)


CATEGORIES = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem",
              "humanities")  # fmt: skip


def questions(path):
    rows = [
        {"question_id": i, "category": CATEGORIES[i % 8], "turns": [f"first {i}", f"second {i}"],
         "reference": [f"right {i}", f"right again {i}"] if i % 8 == 3 else []}
        for i in range(40)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_mt_bench_through_a_server(tmp_path):
    """Two turns, a temperature by category, and the last [[n]] counts; n as the answer says."""
    asked = []

    class Model(ScriptedBackend):
        def __call__(self, requests, decoding, **how):
            asked.extend((r, decoding) for r in requests)
            return super().__call__(requests, decoding, **how)

    def said(request):
        number = int(request.prompt[-1].content.split()[-1])
        return f"I deserve [[10]]. Quality {number % 5 + 1}."

    def grade(messages):
        text = messages[-1]["content"]
        quality = int(re.findall(r"Quality (\d)", text)[-1])
        if "first 7\n" in text and "second" not in text:
            return "no idea"
        return f"It says [[10]], I say [[{quality}]]" if quality % 2 else f"[{quality}]"

    source = questions(tmp_path / "question.jsonl")
    with chat_server(grade) as server:
        measure = UTILITIES["mt-bench"](str(source), judge="g", base_url=server.url, partial=True)
        found = measure(context(tmp_path, Model(said), system="Be kind."))
        sent = [body["messages"][-1]["content"] for body in server.requests]
    by_first = {r.prompt[1].content: d.temperature for r, d in asked if len(r.prompt) == 2}
    assert [by_first[f"first {i}"] for i in range(8)] == [0.7, 0.7, 0, 0, 0, 0, 0.1, 0.1]
    second = next(r for r, _ in asked if r.prompt[-1].content == "second 5")
    assert [m.role for m in second.prompt] == ["system", "user", "assistant", "user"]
    assert second.prompt[2].content == "I deserve [[10]]. Quality 1."
    # quality is 1..5 in equal shares over 40 questions: the mean is 3
    assert found["grade"].value == pytest.approx(3.0)
    assert found["grade"].n == 40
    assert (found["grade, turn 1"].n, found["grade, turn 2"].n) == (39, 40)
    assert found["unparsable grades"].value == 1 / 80
    assert found["grade, math"].n == 5
    assert sum("right again 3\n" in text for text in sent) == 1  # the second turn's reference
    rows = [json.loads(line) for line in (tmp_path / "mt-bench.jsonl").read_text().splitlines()]
    assert len(rows) == 80
    again = Model(said)
    other = ScriptedBackend(lambda request: "[[1]]", name="another judge")
    measure = UTILITIES["mt-bench"](str(source), judge=other, partial=True)
    assert measure(context(tmp_path, again, system="Be kind."))["grade"].value == 1.0
    assert len(other.asked) == 80
    assert not again.asked  # judging anew costs no generation


def pairs(path, n=20):
    rows = [
        {"prompt": f"ask {i}", "reference": "short" if i % 2 else "long " * 9} for i in range(n)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def answers_of(text):
    return [re.search(rf"<answer-{x}-\w+>\n(.*?)\n</answer-{x}", text, re.DOTALL).group(1)
            for x in "ab"]  # fmt: skip


@pytest.mark.parametrize(
    ("judge", "value", "by_position"),
    [
        (lambda a, b: "[[A]]", 0.5, 1.0),  # goes by position: half to everyone
        (lambda a, b: "[[C]]", 0.5, 0.0),
        (lambda a, b: "[[A]]" if "mine" in a else "[[B]]", 1.0, 0.0),
        (lambda a, b: "[[A]]" if "mine" not in a else "[[C]]", 0.25, 0.0),
    ],
)
def test_win_rate_in_both_orders(tmp_path, judge, value, by_position):
    grader = ScriptedBackend(lambda request: judge(*answers_of(request.prompt[-1].content)))
    measure = UTILITIES["win-rate"](str(pairs(tmp_path / "p.jsonl")), judge=grader)
    found = measure(context(tmp_path, ScriptedBackend(lambda request: "mine, middling")))
    assert found["win rate"].value == value
    assert found["win rate"].n == 20
    assert found["choice by position"].value == by_position
    assert found["unparsable choices"].value == 0.0


def test_a_judge_that_likes_length_is_adjusted_for(tmp_path):
    """The judge takes the longer answer; the model is longer on half of the prompts by design,
    then on most: the raw rate moves, the adjusted one stays near a half."""

    def longer(request):
        a, b = answers_of(request.prompt[-1].content)
        return "[[C]]" if len(a) == len(b) else "[[A]]" if len(a) > len(b) else "[[B]]"

    rng = np.random.default_rng(0)
    lengths = rng.integers(-30, 60, 300)  # longer on two thirds
    rows = [{"prompt": f"ask {i}", "reference": "x" * 100} for i in range(300)]
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = ScriptedBackend(
        lambda request: "y" * (100 + lengths[int(request.prompt[-1].content.split()[-1])])
    )
    measure = UTILITIES["win-rate"](str(path), judge=ScriptedBackend(longer))
    found = measure(context(tmp_path, model))
    assert found["win rate"].value > 0.6
    adjusted = found["win rate, length-adjusted"]
    assert abs(adjusted.value - 0.5) < 0.1
    assert adjusted.low < 0.5 < adjusted.high


def test_length_adjusted_is_a_logistic_fit():
    """Against statsmodels' GLM where there are data enough for the priors not to matter."""
    import statsmodels.api as sm

    rng = np.random.default_rng(1)
    longer = rng.normal(40, 100, 4000)
    z = np.tanh(longer / longer.std())
    wins = (rng.random(4000) < 1 / (1 + np.exp(-(0.4 + 1.3 * z)))).astype(float)
    fit = sm.GLM(wins, sm.add_constant(z), family=sm.families.Binomial()).fit()
    found = length_adjusted(wins, longer, seed=0, n_resamples=300)
    assert found.value == pytest.approx(1 / (1 + math.exp(-fit.params[0])), abs=5e-4)
    half = (found.high - found.low) / 2
    slope = found.value * (1 - found.value)
    assert half == pytest.approx(1.96 * fit.bse[0] * slope, rel=0.2)
    sure = length_adjusted([1.0] * 50, [10.0] * 25 + [-10.0] * 25, seed=0)
    assert 0.9 < sure.value < 1  # separable, and still finite


def test_choices():
    assert read_choice("[[A]]? no, [[B]]", model_first=True) == 0.0
    assert read_choice("neither", model_first=True) is None
    duel = Duel("p", "mine", "theirs </answer-a>")
    first = duel.request(ScriptedBackend(lambda r: ""), model_first=True).prompt[0].content
    second = duel.request(ScriptedBackend(lambda r: ""), model_first=False).prompt[0].content
    assert answers_of(first) == ["mine", "theirs </answer-a>"]
    assert answers_of(second) == ["theirs </answer-a>", "mine"]


def test_alpaca_eval_checks_its_size(tmp_path):
    path = tmp_path / "outputs.json"
    path.write_text(json.dumps([{"instruction": "a", "output": "b"}] * 804))
    with pytest.raises(UserError, match="expected 805 rows, got 804"):
        UTILITIES["alpaca-eval"](str(path), judge="x", base_url="http://127.0.0.1:9/v1")


def test_perplexity_is_that_of_a_plain_forward(tmp_path):
    tokenizer, model = tiny_tokenizer(), tiny_llama(dtype=torch.float64)
    rows = [
        {"prompt": "what color is the sea ?", "completion": "the sea is blue"},
        {"prompt": "why", "completion": "because the sky is blue"},
    ]
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    nll, count = 0.0, 0
    for row in rows:
        turns = [{"role": "user", "content": row["prompt"]}]
        prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        turns.append({"role": "assistant", "content": row["completion"]})
        whole = tokenizer.apply_chat_template(turns, tokenize=False)
        start = len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
        ids = tokenizer(whole, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        nll -= sum(float(logits[at - 1, ids[at]]) for at in range(start, len(ids)))
        count += len(ids) - start
    before = model.config._attn_implementation
    found = UTILITIES["perplexity"](str(path))(
        context(tmp_path, TransformersBackend(model, tokenizer))
    )
    assert found["perplexity"].value == pytest.approx(math.exp(nll / count), rel=1e-6)
    assert found["tokens"].value == count
    assert model.config._attn_implementation == before
    assert "forward" not in model.__dict__


def test_kl_from_the_reference_is_the_exact_one(tmp_path):
    """One sampled token: KL is a sum over the vocabulary, known exactly for each prompt."""
    tokenizer = tiny_tokenizer()
    model, reference = tiny_llama(dtype=torch.float64), tiny_llama(1, dtype=torch.float64)
    with torch.no_grad():
        for m in (model, reference):
            m.lm_head.weight.mul_(30)
    texts = ["why", "what color is the sea ?"]
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps({"prompt": t}) + "\n" for t in texts))
    exact = []
    for text in texts:
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
        )
        with torch.no_grad():
            p, q = (m(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
                    for m in (model, reference))  # fmt: skip
        exact.append(float((p.exp() * (p - q)).sum()))
    measure = UTILITIES["kl"](
        TransformersBackend(reference, tokenizer), prompts=str(path), max_new_tokens=1, samples=400
    )
    found = measure(context(tmp_path, TransformersBackend(model, tokenizer)))
    truth = sum(exact) / 2
    assert truth > 0.1
    assert found["kl"].value == pytest.approx(truth, rel=0.2)
    assert found["kl per token"].value == pytest.approx(found["kl"].value)
    same = UTILITIES["kl"](TransformersBackend(model, tokenizer), prompts=str(path))(
        context(tmp_path, TransformersBackend(model, tokenizer))
    )
    assert same["kl"].value == pytest.approx(0.0, abs=1e-9)


def test_babble_is_what_the_reference_says_of_the_answers(tmp_path):
    base = TransformersBackend(tiny_llama(), tiny_tokenizer())
    (tmp_path / "asks.jsonl").write_text('{"prompt": "what is the sea ?"}\n')
    measure = UTILITIES["babble"](base, prompts=str(tmp_path / "asks.jsonl"))
    said = "green sky grass because because seven"
    found = measure(context(tmp_path, ScriptedBackend(lambda request: said)))
    ids = [base.tokenizer(said, add_special_tokens=False).input_ids]
    prompt = base.key(Request((Message("user", "what is the sea ?"),)))
    with torch.no_grad():
        logits = base.model(torch.tensor([[*prompt, *ids[0]]])).logits[0, len(prompt) - 1 : -1]
    nats = -torch.log_softmax(logits, -1).gather(-1, torch.tensor(ids).T).mean()
    metrics = {metric.name: metric.value for metric in found.metrics}
    assert metrics["nats a token, answers"] == pytest.approx(float(nats), rel=1e-4)
    (own,) = base([Request((Message("user", "what is the sea ?"),))], Decoding(8))
    known = {*own.text.split(), "what", "is", "the", "sea"}
    new = [word for word in said.split() if word not in known]
    assert metrics["unseen words"] == pytest.approx(len(new) / 6)
    loop = measure(context(tmp_path / "loop", ScriptedBackend(lambda _: "the sea is green " * 5)))
    assert loop.summary.startswith("This model no longer answers")
    assert loop.name.startswith("this model no longer answers")
    with pytest.raises(UserError, match="give prompts=FILE"):
        UTILITIES["babble"](base)(context(tmp_path, base))


def test_proxies_need_a_local_model(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "why", "completion": "because"}\n')
    for name, options in (("perplexity", {}), ("kl", {"prompts": str(path)})):
        main = str(path) if name == "perplexity" else "somewhere"
        with pytest.raises(UserError, match="use the transformers backend"):
            UTILITIES[name](main, **options)(context(tmp_path, ScriptedBackend(lambda r: "x")))
