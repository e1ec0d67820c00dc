"""Backends: the same tokens everywhere, nothing asked twice, errors that say what to do."""

import asyncio
import copy
import os
import sys
import threading
import time
import types

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from evaluate_server import chat_server
from tiny import tiny_llama, tiny_tokenizer
from trueline.errors import UserError
from trueline.evaluation.backends import Decoding, Request, ScriptedBackend, ask, open_backend
from trueline.evaluation.backends.local import TransformersBackend
from trueline.evaluation.backends.vllm import own_devices
from trueline.evaluation.generation import Generation
from trueline.evaluation.harness.store import Store, complete, digest
from trueline.files import mend
from trueline.models.fingerprint import fingerprint
from trueline.records import Message


def user(text):
    return Request((Message("user", text),))


REQUESTS = [user("why"), user("what color is the sea ?"), user("the sky is blue"), user("help")]


def test_answers_are_kept_by_model_tokens_decoding_and_backend(tmp_path):
    backend = ScriptedBackend(lambda request: f"on {request.prompt[0].content}")
    store = Store(tmp_path, "answers")
    first = ask(backend, [*REQUESTS, REQUESTS[0]], Decoding(), store)
    assert [a.text for a in first][::4] == ["on why", "on why"]
    assert len(backend.asked) == 4  # the same request twice is one answer
    again = ScriptedBackend(lambda request: "never called")
    assert ask(again, REQUESTS, Decoding(), Store(tmp_path, "answers")) == first[:4]
    assert not again.asked
    for other, decoding in (
        (ScriptedBackend(lambda request: "x", name="another model"), Decoding()),
        (again, Decoding(max_new_tokens=3)),
        (again, Decoding(temperature=0.5)),
        (again, Decoding(temperature=0.5, seed=1)),
    ):
        before = len(other.asked)
        ask(other, REQUESTS[:1], decoding, store)
        assert len(other.asked) == before + 1
    before = len(again.asked)
    ask(again, REQUESTS, Decoding(seed=7), store)  # greedy: the seed draws nothing
    assert len(again.asked) == before


def test_a_wrong_number_of_answers_is_an_error(tmp_path):
    class Lossy(ScriptedBackend):
        def __call__(self, requests, decoding, **how):
            return super().__call__(requests, decoding, **how)[:-1]

    with pytest.raises(UserError, match="3 answers to 4 requests"):
        ask(Lossy(lambda request: "a"), REQUESTS, Decoding(), Store(tmp_path, "answers"))


def test_a_torn_last_line_is_mended_and_only_it_is_done_again(tmp_path):
    store = Store(tmp_path, "rows")
    for i in range(3):
        store.add(f"k{i}", {"value": i, "text": "line\u2028separator \ud800"})
    whole = store.path.read_bytes()
    store.path.write_bytes(whole[:-9])
    done = []

    def work(indices, keep):
        for i in indices:
            done.append(i)
            keep(i, {"value": i, "text": "line\u2028separator \ud800"})

    mended = Store(tmp_path, "rows")
    complete(mended, ["k0", "k1", "k2"], work)
    assert done == [2]
    assert store.path.read_bytes() == whole
    assert not mend(store.path)
    lines = whole.split(b"\n")
    store.path.write_bytes(lines[0] + b"\n{broken\n" + lines[2] + b"\n")
    with pytest.raises(UserError, match=r"rows\.jsonl:2 is broken"):
        Store(tmp_path, "rows")


def test_work_left_undone_is_an_error(tmp_path):
    with pytest.raises(UserError, match="expected 2 new rows"):
        complete(Store(tmp_path, "rows"), ["a", "b"], lambda indices, keep: keep(0, {}))


def test_local_backend_keeps_each_answer_and_names_the_model_by_its_weights():
    tokenizer = tiny_tokenizer()
    backend = TransformersBackend(tiny_llama(), tokenizer, batch_size=2)
    kept = {}
    answers = backend(REQUESTS, Decoding(6), on_answer=kept.__setitem__)
    assert [kept[i] for i in range(4)] == answers
    assert backend.key(REQUESTS[0]).count(tokenizer.bos_token_id) == 1
    assert backend.facts != TransformersBackend(tiny_llama(1), tokenizer).facts
    assert {"<s>", "</s>"} <= set(backend.marks)


def test_an_adapter_belongs_to_the_model_that_answers():
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(tiny_llama(), LoraConfig(r=2, target_modules=["q_proj"]))
    before = TransformersBackend(model, tiny_tokenizer()).facts
    reference = fingerprint(model, "float32")
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "lora_B" in name:
                tensor.fill_(0.5)
    assert TransformersBackend(model, tiny_tokenizer()).facts != before
    assert fingerprint(model, "float32") == reference


def test_r3_a_prompt_that_spells_bos_has_one_all_the_same():
    backend = TransformersBackend(tiny_llama(), tiny_tokenizer())
    ids = backend.key(user("why <s> because"))
    assert ids.count(1) == 1
    assert len(backend([user("why <s> because")], Decoding(4))) == 1


def test_r3_a_template_may_open_every_turn_with_bos():
    tokenizer = tiny_tokenizer(adds_bos=False)
    tokenizer.chat_template = (
        "{% for m in messages %}<s>{{ m['role'] }} : {{ m['content'] }}</s>{% endfor %}"
        "{% if add_generation_prompt %}<s>assistant : {% endif %}"
    )
    backend = TransformersBackend(tiny_llama(), tokenizer)
    assert backend.key(user("why")).count(1) == 2
    assert backend([user("why")], Decoding(4))[0].tokens


def test_options_without_effect_are_errors():
    with pytest.raises(UserError, match="base_url has no effect"):
        open_backend("folder", "transformers", base_url="http://x")
    with pytest.raises(UserError, match="dtype has no effect"):
        open_backend("name", base_url="http://x", dtype="float32")
    with pytest.raises(UserError, match="temperature must be at least 0"):
        Decoding(temperature=-1)


# --- a server ---------------------------------------------------------------------------------


def test_server_answers_at_once_with_retries_and_in_order():
    failures = iter([429, 500])
    lock = threading.Lock()

    def reply(messages):
        time.sleep(0.02)
        with lock:
            status = next(failures, None)
        return status or f"on {messages[-1]['content']} and so on"

    with chat_server(reply) as server:
        backend = open_backend("mine", base_url=server.url, concurrency=4, timeout=5.0)
        kept = {}
        answers = backend(REQUESTS * 3, Decoding(4), on_answer=kept.__setitem__)
    assert [a.text for a in answers[:2]] == ["on why and so", "on what color is"]
    assert [kept[i] for i in range(12)] == answers
    assert not answers[0].finished
    assert len(server.requests) == 12 + 2
    assert 2 <= server.most_busy <= 4
    body = server.requests[-1]
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("mine", 0.0, 4)


@pytest.fixture
def no_pause(monkeypatch):
    monkeypatch.setattr("trueline.evaluation.backends.flight.PAUSE", 0.001)


def test_a_request_that_fails_is_an_answer_that_says_so(tmp_path, no_pause):
    """Refused for good it is never asked again; what may pass is, the next time."""
    refused, busy = REQUESTS[-1].prompt[-1].content, REQUESTS[0].prompt[-1].content

    def reply(messages):
        said = messages[-1]["content"]
        return 400 if said == refused else 503 if said == busy else "yes"

    with chat_server(reply) as server:
        backend = open_backend("mine", base_url=server.url, concurrency=2, retries=2)
        said = ask(backend, REQUESTS, Decoding(4), Store(tmp_path, "answers"))
        assert [bool(answer.failed) for answer in said] == [True, False, False, True]
        assert (said[0].failed[:3], said[0].retry) == ("503", True)
        assert (said[3].failed[:3], said[3].retry) == ("400", False)
        assert len(server.requests) == 2 + 1 + 3
        server.reply = lambda messages: "no"
        again = ask(backend, REQUESTS, Decoding(4), Store(tmp_path, "answers"))
        assert len(server.requests) == 6 + 1
    assert [a.text for a in again] == ["no", "yes", "yes", ""]
    assert again[3] == said[3]


def test_while_some_wait_others_are_asked(no_pause, monkeypatch):
    """Slow and failing requests keep no place: two of ten time out and the rest is answered."""
    slow = {"3", "7"}

    def reply(messages):
        if messages[-1]["content"] in slow:
            time.sleep(0.5)
        return "yes"

    requests = [Request((Message("user", str(i)),)) for i in range(10)]
    with chat_server(reply) as server:
        backend = open_backend("m", base_url=server.url, concurrency=4, timeout=0.2, retries=1)
        done = []
        answers = backend(requests, Decoding(4), on_answer=lambda i, answer: done.append(i))
    assert {str(i) for i, answer in enumerate(answers) if answer.failed} == slow
    assert {answers[3].failed.split(":")[0], answers[7].retry} == {"APITimeoutError", True}
    assert set(done[-2:]) == {3, 7}


def test_a_server_that_answers_nothing_stops_the_work(no_pause):
    with chat_server(lambda messages: time.sleep(0.5) or "late") as server:
        backend = open_backend("mine", base_url=server.url, timeout=0.05, retries=0)
        with pytest.raises(
            UserError, match=r"answered none of 4 requests.*APITimeoutError"
        ) as told:
            backend(REQUESTS, Decoding(4))
        assert "\n" not in str(told.value)
    with chat_server(lambda messages: 404) as server:
        backend = open_backend("mine", base_url=server.url, concurrency=1)
        with pytest.raises(UserError, match="refuses model 'mine': 404"):
            backend(REQUESTS, Decoding(4))
        assert len(server.requests) == 1


def test_a_server_is_asked_from_within_a_running_loop_too():
    async def notebook():
        return open_backend("mine", base_url=server.url)(REQUESTS[:1], Decoding(4))

    with chat_server(lambda messages: "yes") as server:
        assert asyncio.run(notebook())[0].text == "yes"


def test_server_prefill_and_plain_text():
    with chat_server(lambda messages: "is how") as server:
        request = Request((Message("user", "why"),), "sure, here ")
        with pytest.raises(UserError, match="prefill attack"):
            open_backend("mine", base_url=server.url)([request], Decoding(4))
        with pytest.raises(UserError, match="takes conversations"):
            open_backend("mine", base_url=server.url)([Request("why")], Decoding(4))
        backend = open_backend("mine", base_url=server.url, continues=True)
        answer = backend([request], Decoding(4))[0]
    assert answer == Generation("is how", 2, True, "sure, here ", "sure, here is how")
    body = server.requests[-1]
    assert body["messages"][-1] == {"role": "assistant", "content": "sure, here "}
    assert body["continue_final_message"] is True
    assert body["add_generation_prompt"] is False


# --- vLLM, whose place a fake module takes ------------------------------------------------------


@pytest.fixture
def fake_vllm(monkeypatch):
    """A module with what is called of vLLM, answering with the transformers model; of the requests
    that are under way the last one is done first."""
    calls = []

    class SamplingParams:
        def __init__(self, **settings):
            self.__dict__.update(settings)

    class LLM:
        def __init__(self, model, **options):
            calls.append({"model": model, **options})
            self.model = AutoModelForCausalLM.from_pretrained(model)
            self.llm_engine = self
            self.under_way = []

        def add_request(self, id, prompt, params, lora_request=None):
            calls.append((prompt["prompt_token_ids"], params))
            model = self.model
            if lora_request is not None:
                model = PeftModel.from_pretrained(copy.deepcopy(model), lora_request.lora_path)
            self.under_way.append((id, prompt, params, model))

        def has_unfinished_requests(self):
            return bool(self.under_way)

        def step(self):
            id, prompt, params, model = self.under_way.pop()
            ids = torch.tensor([prompt["prompt_token_ids"]])
            made = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False,
                max_new_tokens=params.max_tokens, eos_token_id=params.stop_token_ids,
                pad_token_id=3,
            )[0, ids.shape[1] :].tolist()  # fmt: skip
            ended = "stop" if made[-1] in params.stop_token_ids else "length"
            output = types.SimpleNamespace(token_ids=tuple(made), finish_reason=ended)
            waiting = types.SimpleNamespace(request_id="0", finished=False, outputs=[])
            done = types.SimpleNamespace(request_id=id, finished=True, outputs=[output])
            return [waiting, done]

    class LoRARequest:
        def __init__(self, name, number, path):
            self.lora_path = path

    module, lora = types.ModuleType("vllm"), types.ModuleType("vllm.lora.request")
    module.LLM, module.SamplingParams, lora.LoRARequest = LLM, SamplingParams, LoRARequest
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setitem(sys.modules, "vllm.lora", types.ModuleType("vllm.lora"))
    monkeypatch.setitem(sys.modules, "vllm.lora.request", lora)
    return calls


def test_vllm_gets_our_token_ids_and_answers_as_transformers_does(tmp_path, fake_vllm):
    tiny_llama().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    backend = open_backend(str(tmp_path), "vllm", dtype="float32")
    local = open_backend(str(tmp_path), dtype="float32")
    requests = [*REQUESTS, Request(REQUESTS[0].prompt, "because the sky")]
    told, kept = [], {}
    answers = backend(
        requests, Decoding(6), progress=lambda *at: told.append(at), on_answer=kept.__setitem__
    )
    assert answers == local(requests, Decoding(6))
    assert [kept[i] for i in range(5)] == answers
    assert list(kept) == [4, 3, 2, 1, 0]  # each as soon as it is there
    assert told == [(i, 5) for i in range(1, 6)]
    assert [ids for ids, _ in fake_vllm[1:]] == [local.key(r) for r in requests]
    params = fake_vllm[-1][1]
    assert (params.temperature, params.seed, params.stop_token_ids) == (0.0, None, [2])
    assert backend.facts["backend"] == "vllm"
    assert backend.facts != local.facts


def test_vllm_runs_an_adapter_over_its_base(tmp_path, fake_vllm):
    tiny_llama().save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    adapted = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"]))
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=9)
    adapted.save_pretrained(tmp_path / "adapter")
    backend = open_backend(str(tmp_path / "adapter"), "vllm", dtype="float32")
    local = open_backend(str(tmp_path / "adapter"), dtype="float32")
    plain = open_backend(str(tmp_path / "base"), dtype="float32")
    answers = backend(REQUESTS, Decoding(6))
    assert answers == local(REQUESTS, Decoding(6)) != plain(REQUESTS, Decoding(6))
    assert fake_vllm[0]["model"] == str(tmp_path / "base")
    assert (fake_vllm[0]["enable_lora"], fake_vllm[0]["max_lora_rank"]) == (True, 2)
    assert backend.facts["base"] != backend.facts["model"]


def test_each_process_has_devices_of_its_own(monkeypatch):
    for name, value in {"WORLD_SIZE": "3", "LOCAL_RANK": "1", "RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    own_devices(2)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "6,7"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UserError, match="needs 2 devices of its own"):
        own_devices(2)


def test_missing_extras_say_what_to_install(monkeypatch):
    for module, kind in (("vllm", "vllm"), ("openai", "openai")):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(UserError, match=rf"trueline\[{kind}\]"):
            open_backend("m", kind)


def test_digest_is_of_content():
    assert digest({"a": [1, 2]}) != digest({"a": [2, 1]})
