"""While training: the distance from the reference on the model's own answers, and the alarm."""

import copy
import json
import logging
import random
from dataclasses import replace
from itertools import permutations
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from tiny import WORDS, pair_rows, tiny_llama, tiny_tokenizer
from trueline.config import WatchArguments
from trueline.errors import UserError
from trueline.evaluation import answers
from trueline.evaluation.answers import distance, yardstick_of
from trueline.evaluation.generation import Generation, model_input
from trueline.evaluation.harness.summarize import NO_LONGER
from trueline.evaluation.watching import AnswersCallback, alarm, watched
from trueline.prompts import Renderer
from trueline.runs.align import align
from trueline.runs.record import Key

PROMPTS = ["how do i bake bread?", "what is salt?"]


def callback_on(change=None, **options):
    """A callback on a model that was changed after its reference was set aside."""
    tokenizer = tiny_tokenizer()
    reference = tiny_llama()
    model = copy.deepcopy(reference)
    if change is not None:
        with torch.no_grad():
            change(model)
    logged = []
    trainer = SimpleNamespace(model=model, processing_class=tokenizer, log=logged.append)
    options = {"steps": 2, "tokens": 6, "reference": reference, **options}
    return AnswersCallback(trainer, PROMPTS, **options), logged


def louder(model):
    model.lm_head.weight.mul_(3.0)


def step(callback, number):
    control = SimpleNamespace(should_training_stop=False)
    callback.on_step_end(None, SimpleNamespace(global_step=number), control)
    return control


def test_the_distance_of_a_model_from_itself_is_zero_and_grows_as_it_moves():
    same, _ = callback_on()
    assert same.measure()["answers/kl"] == pytest.approx(0.0, abs=1e-6)
    moved, _ = callback_on(louder)
    assert moved.measure()["answers/kl"] > 0.01


def test_the_kl_is_that_of_the_next_token_along_the_answer():
    callback, _ = callback_on(louder)
    model, tokenizer = callback.trainer.model, callback.trainer.processing_class
    ids = [5, 6]
    kl, nll = distance(model, tokenizer, "a b", ids, callback._open)
    given = model_input(Renderer(tokenizer), "a b").ids
    whole = torch.tensor([[*given, *ids]])
    with torch.no_grad(), callback._open() as reference:
        p, q = (torch.log_softmax(m(whole).logits[0].double(), -1) for m in (model, reference))
    places = range(len(given) - 1, len(given) + 1)
    by_hand = sum(float((p[i].exp() * (p[i] - q[i])).sum()) for i in places) / 2
    assert kl == pytest.approx(by_hand, rel=1e-4)
    told = -sum(float(q[i, token]) for i, token in zip(places, ids, strict=True)) / 2
    assert nll == pytest.approx(told, rel=1e-4)


def test_the_yardstick_is_the_references_own_answers_and_their_words_shuffled(monkeypatch):
    callback, _ = callback_on()
    tokenizer = tiny_tokenizer()
    texts = ["the sea is blue", "no"]
    ids = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    said = [Generation(t, len(i), True, ids=tuple(i)) for t, i in zip(texts, ids, strict=True)]
    monkeypatch.setattr(answers, "generate", lambda *_, **__: said)
    found = yardstick_of(callback._open, tokenizer, PROMPTS, tokens=6)
    mixed = texts[0].split()
    random.Random(0).shuffle(mixed)
    by_hand = [
        distance(callback.trainer.model, tokenizer, PROMPTS[0], these, callback._open)[1]
        for these in (ids[0], tokenizer(" ".join(mixed), add_special_tokens=False).input_ids)
    ]
    assert [found.own, found.shuffled] == pytest.approx(by_hand)
    assert found.babble == pytest.approx(sum(by_hand) / 2)
    assert {"bake", "salt", "sea", "no"} <= found.vocabulary
    monkeypatch.setattr(answers, "generate", lambda *_, **__: said[1:] * 2)
    none = yardstick_of(callback._open, tokenizer, PROMPTS, tokens=6)
    assert none.babble is None  # a word alone has no order


def test_it_is_measured_every_so_many_steps_and_the_cost_is_logged():
    callback, logged = callback_on()
    step(callback, 1)
    assert logged == []
    step(callback, 2)
    assert set(logged[0]) >= {"answers/kl", "answers/none", "answers/seconds"}
    assert logged[0]["answers/seconds"] > 0


def test_the_alarm_is_in_words_and_stops_only_where_asked(caplog):
    for stop in (False, True):
        callback, _ = callback_on(stop=stop)
        callback.measure = lambda: {"answers/none": 0.5, "answers/kl": 0.1}
        with caplog.at_level(logging.WARNING):
            control = step(callback, 2)
        assert control.should_training_stop is stop
        assert callback.alarms[0].startswith("step 2:")
        assert "50% of the model's answers" in caplog.text
        assert ("stops here" in caplog.text) is stop
    assert "above 0.5" in alarm({"answers/none": 0, "answers/kl": 0.6}, 0.5)
    assert alarm({"answers/none": 0, "answers/kl": 0.4}, 0.5) is None
    babbles = {"answers/none": 0, "answers/babble_from": 5.0}
    assert "look like babble" in alarm({**babbles, "answers/reference_nll": 5.1})
    assert alarm({**babbles, "answers/reference_nll": 4.9}) is None


def test_the_finding_is_of_the_log_and_says_first_that_nothing_is_answered():
    row = {"answers/kl": 0.1, "answers/none": 0.0, "answers/seconds": 1.0, "answers/prompts": 4}
    how = WatchArguments(answers_steps=2)
    rows = [{"step": 2, **row}, {"step": 3, "loss": 1.0}, {"step": 4, **row}]
    (calm,) = watched(rows, how)
    assert calm.name == Key.WATCHED
    assert "2 times, 2.0 s in all. At step 4" in calm.summary
    assert not calm.advice
    rows.append({"step": 6, **row, "answers/none": 0.75})
    broken, finding = watched(rows, replace(how, answers_stop=True))
    assert broken.name == NO_LONGER
    assert "First alarm at step 6: 75%" in finding.summary
    assert finding.summary.endswith("stopped there.")
    assert finding["answers that are none"].n == 4
    assert watched([{"step": 3, "loss": 1.0}], how) == []


def test_without_anything_to_measure_from_it_is_refused():
    with pytest.raises(UserError, match="give reference=MODEL"):
        callback_on(reference=None)
    with pytest.raises(UserError, match="steps >= 1"):
        callback_on(steps=0)


# --- as keys of `align` ---------------------------------------------------------------------------

LORA = {"use_peft": True, "lora_r": 4, "lora_dropout": 0.3, "learning_rate": 0.05}
WATCH = {"answers_steps": 2, "answers_prompts": 2, "answers_tokens": 5}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A model with dropout, and data."""
    folder = tmp_path_factory.mktemp("watching")
    tiny_llama(attention_dropout=0.3).save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    rows = [
        {**row, "prompt": f"{row['prompt']} {first} {second}"}
        for row, (first, second) in zip(pair_rows(20), permutations(WORDS[-7:], 2), strict=False)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), "utf-8")
    return folder


def aligned(inputs, output, **options):
    usual = {
        "model_name_or_path": str(inputs / "model"), "dataset_name": str(inputs / "pairs.jsonl"),
        "test_size": 0.4, "output_dir": str(output), "reference_cache": "none", "loss_type": "dpo",
        "max_steps": 4, "per_device_train_batch_size": 4, "use_cpu": True, "logging_steps": 1,
        "disable_dropout": False, "learning_rate": 0.01, "save_strategy": "no", "report_to": "none",
    }  # fmt: skip
    return align(**{**usual, **options})


@pytest.mark.parametrize("how", [{}, LORA, {"loss_type": "simpo"}], ids=["whole", "lora", "free"])
def test_training_is_the_same_whether_anybody_looks(inputs, tmp_path, how):
    """Dropout is on, so that a random number taken, or a mode left behind, would show."""
    alone = aligned(inputs, tmp_path / "alone", **how)
    looked = aligned(inputs, tmp_path / "looked", **how, **WATCH)
    name = "adapter_model.safetensors" if how is LORA else "model.safetensors"
    one, two = (load_file(run.path / name) for run in (alone, looked))
    assert all(torch.equal(one[key], two[key]) for key in one)
    rows = [row for row in looked.rows if "answers/kl" in row]
    assert [row["step"] for row in rows] == [2, 4]
    assert 0 < rows[0]["answers/kl"] < rows[1]["answers/kl"]
    assert looked.finding(Key.WATCHED) is not None
    assert looked.config["answers_steps"] == 2
    assert alone.finding(Key.WATCHED) is None


def test_an_alarm_ends_the_training_where_asked(inputs, tmp_path):
    run = aligned(inputs, tmp_path / "run", **WATCH, answers_most_kl=0.0, answers_stop=True)
    assert max(row["step"] for row in run.rows) == 2
    found = run.finding(Key.WATCHED)
    assert "First alarm at step 2" in found.summary
    assert found.summary.endswith("stopped there.")


def test_an_adapter_trained_further_is_measured_from_where_it_starts(inputs, tmp_path):
    first = aligned(inputs, tmp_path / "first", **LORA)
    still = {**WATCH, "answers_steps": 1, "max_steps": 1, "learning_rate": 0.0}
    for loss in ("dpo", "simpo"):
        run = aligned(
            inputs, tmp_path / loss, loss_type=loss, model_name_or_path=str(first.path), **still
        )
        (row,) = [row for row in run.rows if "answers/kl" in row]
        assert row["answers/kl"] == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"answers_stop": True}, "answers_stop has no effect without answers_steps"),
        ({"answers_steps": 5, "test_size": 0}, "there are none; set test_size"),
        ({"answers_steps": 5, "answers_prompts": 500}, "needs 500 different held-out prompts"),
        ({"answers_steps": -1}, "answers_steps must be a number >= 0"),
        ({"answers_steps": 5, "answers_tokens": 0}, "answers_tokens must be a number >= 1"),
    ],
)
def test_what_cannot_be_watched_is_refused(inputs, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        aligned(inputs, tmp_path / "run", **options)
