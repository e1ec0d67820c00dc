"""Invariant 5: no prompt token is scored, no completion token moved into the prompt, one BOS."""

import numpy as np
import pytest

from tiny import CHAT_TEMPLATE, tiny_tokenizer
from trueline.batching import Encoder, pack, view
from trueline.data import load_examples
from trueline.errors import UserError
from trueline.records import Completion, Example, Message


def text_example(prompt="why ?", *completions):
    return Example(prompt, tuple(Completion(c) for c in completions or ("because yes", "no")))


def chat_example(*turns, completions=("because yes", "no")):
    roles = ("user", "assistant")
    prompt = tuple(Message(roles[i % 2], turn) for i, turn in enumerate(turns))
    answers = tuple(Completion((Message("assistant", c),)) for c in completions)
    return Example(prompt, answers, pairs=((0, 1),) if len(answers) > 1 else ())


def words(tokenizer, ids):
    return " ".join(tokenizer.convert_ids_to_tokens(ids.tolist()))


@pytest.mark.parametrize("adds_bos", [True, False])
def test_text_has_the_tokenizers_bos_and_a_closing_eos(adds_bos):
    tokenizer = tiny_tokenizer(adds_bos=adds_bos)
    tree = Encoder(tokenizer)(text_example())
    assert words(tokenizer, tree.prompt) == ("<s> why ?" if adds_bos else "why ?")
    assert words(tokenizer, tree.branches[0].ids) == "because yes </s>"
    assert tree.branches[0].mask.all()


@pytest.mark.parametrize("adds_bos", [True, False])
@pytest.mark.parametrize("in_template", [True, False])
def test_exactly_one_bos_whoever_writes_it(adds_bos, in_template):
    tokenizer = tiny_tokenizer(adds_bos=adds_bos)
    if not in_template:
        tokenizer.chat_template = CHAT_TEMPLATE.replace("{{ bos_token }}", "")
    tree = Encoder(tokenizer)(chat_example("why ?"))
    whole = [tree.prompt.tolist() + b.ids.tolist() for b in tree.branches]
    expected = 1 if adds_bos or in_template else 0
    assert [ids.count(tokenizer.bos_token_id) for ids in whole] == [expected] * 2


def test_the_prompt_is_a_prefix_of_the_rendered_whole():
    tokenizer = tiny_tokenizer()
    example = chat_example("why ?", "no", "what color ?")
    tree = Encoder(tokenizer)(example)
    for completion, branch in zip(example.completions, tree.branches, strict=True):
        messages = [m.to_dict() for m in (*example.prompt, *completion.content)]
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tree.prompt.tolist() + branch.ids.tolist() == ids


def test_only_the_assistants_words_are_scored():
    tokenizer = tiny_tokenizer()
    turns = (Message("assistant", "no"), Message("user", "why ?"), Message("assistant", "yes"))
    tree = Encoder(tokenizer)(Example((Message("user", "is it ?"),), (Completion(turns),)))
    branch = tree.branches[0]
    assert words(tokenizer, branch.ids) == "no </s> user : why ? assistant : yes </s>"
    assert words(tokenizer, branch.ids[branch.mask]) == "no </s> yes </s>"
    twice = (Message("assistant", "no"), Message("assistant", "yes"))
    again = Encoder(tokenizer)(Example((Message("user", "why ?"),), (Completion(twice),)))
    ids = again.branches[0].ids[again.branches[0].mask]
    assert words(tokenizer, ids) == "no </s> yes </s>"
    batch = pack([tree])
    assert batch.targets.tolist() == branch.ids[branch.mask].tolist()
    row = batch.input_ids[0]
    assert row[batch.predictors[0]] == tokenizer.convert_tokens_to_ids(":"), "the prompt's last"


def test_truncation_eats_the_prompt_first_and_keeps_the_bos():
    tokenizer = tiny_tokenizer()
    encoder = Encoder(tokenizer, max_length=6)
    tree = encoder(text_example("one two three four five ", "yes no", "no"))
    assert words(tokenizer, tree.prompt) == "<s> four five"
    assert words(tokenizer, tree.branches[0].ids) == "yes no </s>"
    assert encoder.counts == {"prompts_truncated": 1}


def test_truncation_keeps_at_least_one_completion_token():
    tokenizer = tiny_tokenizer()
    encoder = Encoder(tokenizer, max_length=4)
    tree = encoder(text_example("one two three ", "one two three four five six", "no"))
    assert words(tokenizer, tree.prompt) == "<s>"
    assert words(tokenizer, tree.branches[0].ids) == "one two three"
    assert encoder.counts == {"prompts_truncated": 1, "completions_truncated": 1}
    shortest = Encoder(tokenizer, max_length=2)(text_example("one two", "one two", "no"))
    assert [len(b.ids) for b in shortest.branches] == [1, 1]


def test_merges_across_the_boundary_are_kept_apart_and_counted():
    """A tokenizer that would join the prompt's end with the completion's start into one token."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<unk>": 0, "</s>": 1, "a": 2, "b": 3, "ab": 4}
    backend = Tokenizer(models.BPE(vocabulary, [("a", "b")], unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", eos_token="</s>"
    )
    encoder = Encoder(tokenizer)
    tree = encoder(text_example("aa", "ba", "a"))
    assert tree.prompt.tolist() == [2, 2], "the prompt's ids do not depend on the completion"
    assert tree.branches[0].ids.tolist() == [3, 2, 1]
    assert encoder.counts["boundary_merges"] == 1


def test_an_empty_prompt_scores_what_can_be_predicted():
    with_bos = Encoder(tiny_tokenizer())(text_example("", "yes no"))
    assert pack([with_bos]).length.tolist() == [3]
    without = Encoder(tiny_tokenizer(adds_bos=False))(text_example("", "yes no"))
    assert pack([without]).length.tolist() == [2], "nothing precedes the first token"


def test_conversations_without_a_template_say_what_to_do():
    with pytest.raises(UserError, match="no chat template"):
        Encoder(tiny_tokenizer(chat=False))(chat_example("why ?"))


def test_a_template_that_rewrites_history_is_refused():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ messages | length }} " + CHAT_TEMPLATE
    with pytest.raises(UserError, match="does not keep the prompt as a prefix"):
        Encoder(tokenizer)(chat_example("why ?"))


def test_f9_f10_no_response_word_moves_into_the_prompt():
    (example,) = load_examples([{"chosen": "Paris ", "rejected": "London"}])
    assert example.prompt == ""
    assert [c.content.strip() for c in example.completions] == ["Paris", "London"]


def test_views_pair_label_and_imitate():
    encode = Encoder(tiny_tokenizer())
    example = chat_example("why ?")
    tree = encode(example)
    (pair,) = view(example, tree, "paired")
    assert pair.desirable == (True, False)
    (both,) = view(example, tree, "unpaired")
    assert both.desirable == (True, False)
    (chosen,) = view(example, tree, "completion")
    assert np.array_equal(chosen.branches[0].ids, tree.branches[0].ids)
    assert len(chosen.branches) == 1


def test_positions_continue_from_the_prompts_end():
    tree = Encoder(tiny_tokenizer())(text_example("why ?", "one two", "no"))
    batch = pack([tree, tree])
    assert batch.position_ids[0].tolist() == [0, 1, 2, 3, 4, 3, 0, 1, 2, 3, 4, 3]
    assert batch.owners.tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 3, 3]
