"""While training: the distance from the reference on the model's own answers, and the alarm."""

import copy
from types import SimpleNamespace

import pytest
import torch

from tiny import tiny_llama, tiny_tokenizer
from trueline.errors import UserError
from trueline.evaluation.watching import AnswersCallback

PROMPTS = ["how do i bake bread?", "what is salt?"]


def watched(change=None, **options):
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
    same, _ = watched()
    assert same.measure()["answers/kl"] == pytest.approx(0.0, abs=1e-6)
    moved, _ = watched(louder)
    assert moved.measure()["answers/kl"] > 0.01


def test_the_kl_is_that_of_the_next_token_along_the_answer():
    callback, _ = watched(louder)
    ids = [5, 6]
    found = callback._distance("a b", ids)
    from trueline.evaluation.generation import model_input
    from trueline.prompts import Renderer

    given = model_input(Renderer(callback.trainer.processing_class), "a b").ids
    whole = torch.tensor([[*given, *ids]])
    with torch.no_grad():
        p, q = (torch.log_softmax(m(whole).logits[0].double(), -1)
                for m in (callback.trainer.model, callback.reference))  # fmt: skip
    places = range(len(given) - 1, len(given) + 1)
    by_hand = sum(float((p[i].exp() * (p[i] - q[i])).sum()) for i in places) / 2
    assert found.kl == pytest.approx(by_hand, rel=1e-4)
    told = -sum(float(q[i, token]) for i, token in zip(places, ids, strict=True)) / 2
    assert found.nll == pytest.approx(told, rel=1e-4)


def test_it_is_measured_every_so_many_steps_and_the_cost_is_logged():
    callback, logged = watched()
    callback.alarm = lambda found: None
    step(callback, 1)
    assert logged == []
    step(callback, 2)
    assert set(logged[0]) >= {"answers/kl", "answers/none", "answers/seconds"}
    assert logged[0]["answers/seconds"] > 0


def test_the_alarm_is_in_words_and_stops_only_where_asked():
    babble = {"answers/none": 0.5, "answers/kl": 0.1}
    for stop in (False, True):
        callback, _ = watched(stop=stop)
        callback.measure = lambda: babble
        with pytest.warns(UserWarning, match="50% of the model's answers .* no longer answers"):
            control = step(callback, 2)
        assert control.should_training_stop is stop
        assert callback.alarms[0].startswith("step 2:")
    far, _ = watched(most_kl=0.5)
    far._own = (1.0, 9.0)
    assert "above 0.5" in far.alarm({"answers/none": 0, "answers/kl": 0.6})
    assert far.alarm({"answers/none": 0, "answers/kl": 0.4}) is None
    # 5.1 is nearer to 9, the shuffled words, than to 1
    assert "look like babble" in far.alarm({"answers/none": 0, "answers/reference_nll": 5.1})
    assert far.alarm({"answers/none": 0, "answers/reference_nll": 4.9}) is None


def test_without_anything_to_measure_from_it_is_refused():
    with pytest.raises(UserError, match="give reference=MODEL"):
        watched(reference=None)
    with pytest.raises(UserError, match="steps >= 1"):
        watched(steps=0)
