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
def test_r3_one_bos_where_the_template_writes_one(adds_bos, in_template):
    """What plain transformers, TRL and vLLM make of a conversation: the template alone decides."""
    tokenizer = tiny_tokenizer(adds_bos=adds_bos)
    if not in_template:
        tokenizer.chat_template = CHAT_TEMPLATE.replace("{{ bos_token }}", "")
    tree = Encoder(tokenizer)(chat_example("why ?"))
    whole = [tree.prompt.tolist() + b.ids.tolist() for b in tree.branches]
    expected = 1 if in_template else 0
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


def test_r15_the_prompt_stays_whole_and_answers_are_cut_at_the_right():
    tokenizer = tiny_tokenizer()
    encoder = Encoder(tokenizer, max_length=6)
    tree = encoder(text_example("one two ", "yes no yes no", "no"))
    assert words(tokenizer, tree.prompt) == "<s> one two"
    assert [words(tokenizer, b.ids) for b in tree.branches] == ["yes no yes", "no </s>"]
    assert encoder.counts == {"completions_truncated": 1, "completion_tokens_cut": 2, "rows_cut": 1}
    assert encoder.told.grave
    assert "a larger max_length keeps them" in encoder.said()[0]


def test_r15_a_prompt_gives_way_where_it_leaves_no_room_for_an_answer():
    tokenizer = tiny_tokenizer()
    encoder = Encoder(tokenizer, max_length=6)
    tree = encoder(text_example("one two three four five ", "yes no yes yes", "no"))
    assert words(tokenizer, tree.prompt) == "<s> four five"
    assert words(tokenizer, tree.branches[0].ids) == "yes no yes"
    assert encoder.counts["prompt_tokens_cut"] == 3
    shortest = Encoder(tokenizer, max_length=2)(text_example("one two", "one two", "no"))
    assert [len(b.ids) for b in shortest.branches] == [1, 1]


def test_r15_keep_end_keeps_the_ends_of_answers():
    tokenizer = tiny_tokenizer()
    encoder = Encoder(tokenizer, max_length=4, truncation_mode="keep_end")
    tree = encoder(text_example("one two three ", "one two three four five", "no"))
    assert words(tokenizer, tree.prompt) == "<s>"
    assert words(tokenizer, tree.branches[0].ids) == "four five </s>"
    roomy = Encoder(tokenizer, max_length=6, truncation_mode="keep_end")
    tree = roomy(text_example("one two three four five ", "yes no", "no"))
    assert words(tokenizer, tree.prompt) == "<s> four five"
    assert words(tokenizer, tree.branches[0].ids) == "yes no </s>"


def test_r9_r15_whole_turns_go_first_and_the_template_stays():
    tokenizer = tiny_tokenizer()
    talk = chat_example("one two three", "no", "why ?", completions=("yes no", "no"))
    encoder = Encoder(tokenizer, max_length=10)
    assert words(tokenizer, encoder(talk).prompt) == "<s> user : why ? assistant :"
    assert encoder.counts["turns_left_out"] == 2
    long = chat_example("one two three four five", completions=("yes no", "no"))
    assert words(tokenizer, encoder(long).prompt) == "<s> user : four five assistant :"
    system = Example(
        (Message("system", "one two"), *talk.prompt), talk.completions, reference_prompt=talk.prompt
    )
    tree = Encoder(tokenizer, max_length=64, max_prompt_length=12)(system)
    assert words(tokenizer, tree.prompt) == "<s> user : one two user : why ? assistant :"
    assert words(tokenizer, tree.reference_prompt) == "<s> user : why ? assistant :"


def test_r9_bos_stands_only_where_the_tokenizer_puts_one():
    tokenizer = tiny_tokenizer(adds_bos=False)
    tree = Encoder(tokenizer, max_length=6)(text_example("<s> one two three four five ", "yes no"))
    assert words(tokenizer, tree.prompt) == "three four five"


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


def test_r6_a_template_that_rewrites_history_trains_and_one_that_hides_the_answer_is_refused():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ 'one' if messages | length == 1 else 'two' }} " + CHAT_TEMPLATE
    tree = Encoder(tokenizer)(chat_example("why ?"))
    assert words(tokenizer, tree.prompt) == "one <s> user : why ? assistant :"
    assert words(tokenizer, tree.branches[0].ids) == "because yes </s>"
    tokenizer.chat_template = "{{ messages | length }} {{ messages[0].content }}"
    with pytest.raises(UserError, match=r"cannot be found .*'1 why \?' before, '2 why \?' then"):
        Encoder(tokenizer)(chat_example("why ?"))


def test_what_a_template_refuses_is_said():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(UserError, match="cannot write this conversation: roles must alternate"):
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


def test_append_eos_closes_a_conversation_once():
    """As TRL's older trainers do; a template that ends with EOS gets no second one."""
    tokenizer = tiny_tokenizer()
    row = {
        "prompt": [{"role": "user", "content": "why ?"}],
        "chosen": [{"role": "assistant", "content": "yes"}],
        "rejected": [{"role": "assistant", "content": "no"}],
    }
    (example,) = load_examples([row])
    eos = tokenizer.eos_token_id
    plain, closed = (Encoder(tokenizer, append_eos=value)(example) for value in (False, True))
    assert [b.ids.tolist() for b in plain.branches] == [b.ids.tolist() for b in closed.branches]
    tokenizer.chat_template = tokenizer.chat_template.replace("{{ eos_token }}", " !")
    open_end, closed = (Encoder(tokenizer, append_eos=value)(example) for value in (False, True))
    for before, after in zip(open_end.branches, closed.branches, strict=True):
        assert after.ids.tolist() == [*before.ids.tolist(), eos]
        assert after.mask[-1]
