"""A tokenizer of 96 words whose letters are one token each, and multiple-choice questions in them."""

from __future__ import annotations

import random
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from expertmix.agents.moe.letters import Letters
from expertmix.retrieval import Question

LETTERS = "ABCDEFGHIJ"
WORDS = [f"w{number}" for number in range(60)]
TEMPLATE = (
    "{% for message in messages %}<s> {{ message['content'] }} "
    "{% if not loop.last %}</s> {% endif %}{% endfor %}"
)


def make_tokenizer(*, whole_letters: bool = True, template: str | None = TEMPLATE) -> Any:
    """Without `whole_letters`, a space before a letter is a token of its own."""
    vocabulary = ["<pad>", "<s>", "</s>", *LETTERS, *(f"{letter}." for letter in LETTERS)]
    vocabulary += ["Question:", "Answer:", "Answer", "with", "the", "letter", "of", "right"]
    vocabulary += ["option.", "<unk>", " ", *WORDS[: 96 - 34]]
    ids = {word: number for number, word in enumerate(vocabulary)}
    backend = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    backend.pre_tokenizer = (  # pyright: ignore[reportAttributeAccessIssue]
        pre_tokenizers.WhitespaceSplit()
        if whole_letters
        else pre_tokenizers.Split(" ", behavior="isolated")
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    )
    tokenizer.chat_template = template
    return tokenizer


def make_letters(*, window: int | None = None) -> Letters:
    """Of the tokenizer with whole letters."""
    return Letters.of(make_tokenizer(), window=window)


def make_questions(number: int, *, seed: int = 0, gold: str | None = None) -> list[Question]:
    """Random questions of different lengths with 2 to 5 options; the gold letter is random too."""
    draw = random.Random(seed)
    questions: list[Question] = []
    for at in range(number):
        options = draw.sample(WORDS, draw.randint(2, 5))
        questions.append(
            Question(
                id=f"q{seed}-{at}",
                text=" ".join(draw.choices(WORDS, k=draw.randint(2, 9))),
                options=tuple(options),
                gold=gold or draw.choice(LETTERS[: len(options)]),
                kind="choice",
            )
        )
    return questions
