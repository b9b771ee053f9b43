"""Solved neighbours as examples in a prompt."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("transformers", reason="needs transformers")

import torch
from moe_families import make_model
from moe_wording import make_letters, make_questions

from expertmix.agents.moe.architecture import find_moe
from expertmix.agents.moe.bank import build_bank
from expertmix.agents.moe.neighbourhood import Neighbourhood
from expertmix.graph.few_shot import answer_with_examples, encode_with_examples


def test_the_nearest_example_stands_last_and_far_ones_give_way() -> None:
    letters = make_letters()
    question, *examples = make_questions(4)
    ids = encode_with_examples(letters, question, examples)
    text = letters.tokenizer.decode(ids)
    places = [text.index(example.text) for example in (*examples[::-1], question)]
    assert places == sorted(places)
    assert f"Answer: {examples[0].gold}" in text
    assert encode_with_examples(letters, question, []) == letters.encode(question)
    whole, alone = len(ids), len(letters.encode(question))
    short = make_letters(window=whole - 1)
    fewer = encode_with_examples(short, question, examples)
    assert fewer == encode_with_examples(letters, question, examples[:2])
    tight = make_letters(window=alone)
    assert encode_with_examples(tight, question, examples) == letters.encode(question)


def test_answers_are_those_of_each_prompt_by_itself() -> None:
    moe = find_moe(make_model("qwen2_moe"))
    letters = make_letters()
    bank = build_bank(moe, letters, make_questions(6, seed=1), first=2)
    own = build_bank(moe, letters, make_questions(5, seed=2), first=2)
    rows_QN = torch.tensor([[0, 1], [2, 3], [4, 5], [1, 0], [3, 3]])
    present_QN = torch.tensor(
        [[True, True], [True, True], [True, False], [False, False], [True] * 2]
    )
    near = Neighbourhood(
        rows_QN=rows_QN, similarity_QN=torch.ones(5, 2), present_QN=present_QN, dropped={}
    )
    logits_QO, lengths = answer_with_examples(own, bank, near)
    assert lengths[3] == len(letters.encode(own.questions[3]))
    assert lengths[0] > 2 * len(letters.encode(own.questions[0])) - 5
    assert not logits_QO.requires_grad
    torch.testing.assert_close(logits_QO[3], own.logits_NO[3].float())  # no examples
    for place, question in enumerate(own.questions):
        examples = [
            bank.questions[row]
            for row, there in zip(rows_QN[place].tolist(), present_QN[place].tolist(), strict=True)
            if there
        ]
        ids = torch.tensor([encode_with_examples(letters, question, examples)])
        with torch.no_grad():
            alone = moe.model(input_ids=ids).logits[0, -1, letters.tokens_O]
        number = len(question.options)
        torch.testing.assert_close(logits_QO[place, :number], alone[:number].float())
        assert torch.isinf(logits_QO[place, number:]).all()
