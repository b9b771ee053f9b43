from __future__ import annotations

from dataclasses import replace

import pytest

pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("transformers", reason="needs transformers")

from hypothesis import given
from hypothesis import strategies as st
from moe_wording import LETTERS, TEMPLATE, WORDS, make_letters, make_tokenizer

from expertmix.agents.moe.letters import Letters, pad_prompts, rotate_options
from expertmix.retrieval import InputError, Question

QUESTION = Question(id="q", text="w1 w2", options=("w3", "w4"), gold="B", kind="choice")


def test_letters_are_looked_up_once() -> None:
    letters = make_letters()
    assert letters.tokenizer.convert_ids_to_tokens(list(letters.tokens)) == list(LETTERS)
    assert letters.tokens_O.tolist() == list(letters.tokens)


def test_the_prompt_ends_where_the_letter_follows() -> None:
    letters = make_letters()
    text = letters.tokenizer.convert_ids_to_tokens(letters.encode(QUESTION))
    assert text == [
        "<s>",
        "Question:",
        "w1",
        "w2",
        "A.",
        "w3",
        "B.",
        "w4",
        "Answer",
        "with",
        "the",
        "letter",
        "of",
        "the",
        "right",
        "option.",
        "</s>",
        "<s>",
        "Answer:",
    ]


def test_a_letter_of_two_tokens_is_refused() -> None:
    with pytest.raises(InputError, match=r"writes the option letter 'A' as 2 tokens; .* one token"):
        Letters.of(make_tokenizer(whole_letters=False))


def test_a_prompt_that_is_longer_than_the_window_is_refused() -> None:
    length = len(make_letters().encode(QUESTION))
    assert len(make_letters(window=length).encode(QUESTION)) == length
    with pytest.raises(
        InputError, match=f'"q" has {length} tokens, more than the window of {length - 1}'
    ):
        make_letters(window=length - 1).encode(QUESTION)


@pytest.mark.parametrize("number", [0, 1, 11])
def test_only_two_to_ten_options_are_decided(number: int) -> None:
    with pytest.raises(InputError, match=f'"q" has {number} options; .* between 2 and 10'):
        make_letters().encode(replace(QUESTION, options=tuple(WORDS[:number])))
    assert make_letters().encode(replace(QUESTION, options=tuple(WORDS[:10])))


def test_the_hash_tells_template_and_letters_apart() -> None:
    letters = make_letters()
    assert letters.prompt_hash == make_letters(window=50).prompt_hash
    hashes = {
        letters.prompt_hash,
        replace(letters, chat_template=TEMPLATE + " ").prompt_hash,
        Letters.of(make_tokenizer(template=TEMPLATE + "!")).prompt_hash,
        replace(letters, tokens=letters.tokens[::-1]).prompt_hash,
        replace(letters, chat_template="plain").prompt_hash,
    }
    assert len(hashes) == 5
    assert replace(letters, chat_template=TEMPLATE).prompt_hash == letters.prompt_hash


def test_a_template_that_ships_is_hashed_by_its_text_and_not_its_name() -> None:
    from expertmix.agents.engines.tokens import load_template

    letters = make_letters()
    by_name = replace(letters, chat_template="plain")
    assert by_name.prompt_hash == replace(letters, chat_template=load_template("plain")).prompt_hash


def test_prompts_are_filled_up_at_the_left() -> None:
    ids_BT, mask_BT = pad_prompts([[5, 6, 7], [8]])
    assert ids_BT.tolist() == [[5, 6, 7], [0, 0, 8]]
    assert mask_BT.tolist() == [[1, 1, 1], [0, 0, 1]]


@given(st.integers(2, 10), st.integers(-20, 20), st.data())
def test_rotating_options_keeps_the_gold_one(number: int, steps: int, data: st.DataObject) -> None:
    gold = data.draw(st.sampled_from(LETTERS[:number]))
    question = replace(QUESTION, options=tuple(WORDS[:number]), gold=gold)
    rotated = rotate_options(question, steps)
    assert rotated.gold is not None
    assert rotated.options[LETTERS.index(rotated.gold)] == question.options[LETTERS.index(gold)]
    assert sorted(rotated.options) == sorted(question.options)
    assert rotate_options(rotated, -steps) == question
    assert rotate_options(question, number) == question


def test_all_rotations_give_every_letter_once() -> None:
    question = replace(QUESTION, options=("w1", "w2", "w3"), gold="B")
    assert {rotate_options(question, steps).gold for steps in range(3)} == {"A", "B", "C"}
    assert rotate_options(replace(question, gold=None), 1).gold is None
