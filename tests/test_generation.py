"""Generation: a prompt's tokens alone decide its answer, whatever stands beside it."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from trueline.errors import UserError
from trueline.evaluation.decoding import GumbelNoise, can_leave
from trueline.evaluation.generation import Generation, generate
from trueline.prompts import Renderer, pad
from trueline.records import Message

WORDS = [
    "how",
    "to",
    "bake",
    "a",
    "cake",
    "pick",
    "the",
    "lock",
    "open",
    "my",
    "door",
    "please",
    "sure",
    "here",
    "is",
    "no",
    "i",
    "can",
    "not",
]
SPECIAL = ["<unk>", "<bos>", "<eos>", "<user>", "<bot>"]
TEMPLATE = (
    "<bos>{% for m in messages %}{{ '<user> ' if m.role == 'user' else '<bot> ' }}"
    "{{ m.content }}{% if not (loop.last and m.role == 'assistant') %} <eos> {% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<bot> {% endif %}"
)


def word_tokenizer(*, adds_bos: bool = False) -> PreTrainedTokenizerFast:
    vocab = {word: i for i, word in enumerate(dict.fromkeys([*SPECIAL, *WORDS]))}
    core = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<user>", "<bot>"]})
    if adds_bos:
        from tokenizers.processors import TemplateProcessing

        core = tokenizer.backend_tokenizer
        core.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def tiny_model(tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.6,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config).double()


def user(text: str) -> tuple[Message, ...]:
    return (Message("user", text),)


PROMPTS = [
    user("how to bake a cake"),
    user("pick the lock"),
    "open my door please",
    user("please"),
    "how",
    user("how to open the door my cake please sure"),
]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return word_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer) -> LlamaForCausalLM:
    return tiny_model(tokenizer)


def naive(model, tokenizer, prompt, limit: int, prefill: str = "") -> list[int]:
    """Greedy decoding one prompt at a time, without cache, padding or mask."""
    renderer = Renderer(tokenizer)
    text = renderer.text(prompt) + prefill
    ids = renderer.begin(prompt, renderer.control.encode(text))
    start = len(ids)
    with torch.no_grad():
        while len(ids) < start + limit:
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == tokenizer.eos_token_id:
                break
    return ids[start:]


@pytest.mark.parametrize("batch_size", [1, 2, 4, 64])
def test_batches_equal_one_by_one(model, tokenizer, batch_size: int) -> None:
    found = generate(model, tokenizer, PROMPTS, max_new_tokens=12, batch_size=batch_size)
    for prompt, generation in zip(PROMPTS, found, strict=True):
        expected = naive(model, tokenizer, prompt, 12)
        assert generation.tokens == len(expected)
        assert generation.text == tokenizer.decode(expected, skip_special_tokens=True)
        assert generation.finished == (expected[-1] == tokenizer.eos_token_id)
        assert generation.answer == generation.text


def test_some_answers_end_and_some_are_cut(tokenizer) -> None:
    finished = [
        generation.finished
        for seed in range(12)
        for generation in generate(tiny_model(tokenizer, seed), tokenizer, PROMPTS)
    ]
    assert any(finished)
    assert not all(finished)


def test_prefill_stands_between_generation_prompt_and_answer(model, tokenizer) -> None:
    prefills = ["sure here is", "", "no", "i can not", "sure", "here"]
    found = generate(model, tokenizer, PROMPTS, max_new_tokens=6, prefill=prefills, batch_size=4)
    for prompt, start, generation in zip(PROMPTS, prefills, found, strict=True):
        glue = " " if isinstance(prompt, str) and start else ""
        expected = naive(model, tokenizer, prompt, 6, glue + start) if not glue else None
        assert generation.prefill == start
        assert generation.answer.startswith(start)
        if expected is not None:
            assert generation.text == tokenizer.decode(expected, skip_special_tokens=True)


def test_exactly_one_bos() -> None:
    template_writes, tokenizer_adds = word_tokenizer(), word_tokenizer(adds_bos=True)
    text = Renderer(tokenizer_adds).text(user("please"))
    assert tokenizer_adds(text)["input_ids"].count(1) == 2  # what must not happen
    for tokenizer in (template_writes, tokenizer_adds):
        assert Renderer(tokenizer).prompt_ids(user("please")).count(1) == 1
    assert Renderer(tokenizer_adds).prompt_ids("please")[0] == 1
    assert Renderer(template_writes).prompt_ids("please").count(1) == 0


def test_mode_and_settings_are_restored(model, tokenizer) -> None:
    before = model.generation_config.to_dict()
    model.train()
    model.model.layers[0].eval()
    generate(model, tokenizer, PROMPTS[:1], max_new_tokens=2)
    assert model.training
    assert not model.model.layers[0].training
    assert model.generation_config.to_dict() == before


def test_the_models_own_sampling_settings_change_nothing(tokenizer) -> None:
    model = tiny_model(tokenizer)
    plain = generate(model, tokenizer, PROMPTS, max_new_tokens=8)
    model.generation_config.update(
        do_sample=True, temperature=3.0, repetition_penalty=5.0, no_repeat_ngram_size=1
    )
    assert generate(model, tokenizer, PROMPTS, max_new_tokens=8) == plain


def test_any_end_token_of_the_model_ends(tokenizer) -> None:
    model = tiny_model(tokenizer)
    first = naive(model, tokenizer, PROMPTS[0], 1)[0]
    model.generation_config.eos_token_id = [2, first]
    generation = generate(model, tokenizer, PROMPTS[:1])[0]
    assert generation.tokens == 1
    assert generation.finished


def test_progress_reaches_the_end(model, tokenizer) -> None:
    seen: list[tuple[int, int]] = []
    generate(
        model, tokenizer, PROMPTS, max_new_tokens=1, batch_size=4,
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert seen == [(i, 6) for i in range(1, 7)]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rows_that_leave_and_join_say_what_they_say_in_plain_batches(
    tokenizer, temperature, monkeypatch
) -> None:
    """Answers of many lengths: each row's tokens are those of transformers' own generation, in
    half as many row-steps."""
    model = tiny_model(tokenizer, seed=3)
    prompts = [" ".join(WORDS[k % 13 : k % 13 + 1 + k % 7]) for k in range(40)]
    settings = {"max_new_tokens": 30, "temperature": 3 * temperature, "seed": 1}
    seen = []
    handle = model.register_forward_pre_hook(
        lambda _, args, given: seen.append(len(given["input_ids"])), with_kwargs=True
    )

    def answers(**more):
        seen.clear()
        return generate(model, tokenizer, prompts, **settings, **more), sum(seen)

    leaving, few = answers(batch_size=8)
    alone, _ = answers(batch_size=1)
    assert can_leave(model)
    monkeypatch.setattr("trueline.evaluation.generation.can_leave", lambda _: False)
    plain, many = answers(batch_size=8)
    handle.remove()
    assert leaving == plain == alone
    lengths = [answer.tokens for answer in plain]
    assert few == sum(lengths)
    if temperature:
        assert len(set(lengths)) > 8
        assert few < 0.7 * many


def test_models_whose_rows_cannot_leave_generate_as_transformers_does() -> None:
    from transformers import MambaConfig, MambaForCausalLM, MistralConfig, MistralForCausalLM

    small = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 16}
    window = MistralForCausalLM(MistralConfig(**small, **heads, sliding_window=4))
    assert not can_leave(window)
    assert can_leave(MistralForCausalLM(MistralConfig(**small, **heads, sliding_window=None)))
    assert not can_leave(MambaForCausalLM(MambaConfig(**small, state_size=4)))


def test_nothing_asked_nothing_answered(model, tokenizer) -> None:
    assert generate(model, tokenizer, []) == []


def test_what_is_wrong_is_said(model, tokenizer) -> None:
    with pytest.raises(UserError, match="1 for 6"):
        generate(model, tokenizer, PROMPTS, prefill=["sure"])
    with pytest.raises(UserError, match="prompt 0 has no tokens"):
        generate(model, tokenizer, [""])
    with pytest.raises(UserError, match="max_new_tokens"):
        generate(model, tokenizer, PROMPTS, max_new_tokens=0)
    bare = word_tokenizer()
    bare.chat_template = None
    with pytest.raises(UserError, match="chat template"):
        generate(model, bare, [user("please")])


def test_padding_sides() -> None:
    right, mask = pad([[5, 6], [7]], fill=0, left=False)
    assert right.tolist() == [[5, 6], [7, 0]]
    assert mask.tolist() == [[1, 1], [1, 0]]


def test_sampling_depends_on_seed_and_prompt_alone(model, tokenizer) -> None:
    def sample(batch_size: int, seed: int = 0, prompts=PROMPTS) -> list[Generation]:
        return generate(
            model, tokenizer, prompts, max_new_tokens=8, temperature=1.0, seed=seed,
            batch_size=batch_size,
        )  # fmt: skip

    found = sample(6)
    assert sample(2) == found
    assert sample(1, prompts=PROMPTS[3:4]) == found[3:4]
    assert sample(6, seed=1) != found
    assert found != generate(model, tokenizer, PROMPTS, max_new_tokens=8)


def test_sampled_tokens_follow_the_softmax(model, tokenizer) -> None:
    """First tokens over many seeds against softmax(logits / T), by a chi-squared test."""
    from scipy.stats import chisquare

    temperature, n = 0.7, 1500
    ids = Renderer(tokenizer).prompt_ids(PROMPTS[0])
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, -1]
    expected = (logits / temperature).softmax(-1).numpy() * n
    counts = torch.zeros(len(expected))
    for seed in range(n):
        noise = GumbelNoise([ids], temperature, seed)
        counts[int(noise([0], logits[None]).argmax())] += 1
    large = expected >= 5
    seen = [*counts.numpy()[large], counts.numpy()[~large].sum()]
    wanted = [*expected[large], expected[~large].sum()]
    assert chisquare(seen, wanted).pvalue > 0.001
