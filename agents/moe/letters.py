"""Multiple choice as a decision of one token: the prompt, and the tokens of the option letters.

The decision is the likeliest letter at the last prompt token. The published protocol is never stated
and its code parses generated text; ours is fixed here (c3po.md §2.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ...retrieval import InputError, Question
from ..engines.tokens import encode_chat, encode_option, load_template
from ..prompt import hash_prompts
from ..reason import build_messages

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["ALPHABET", "Letters", "hash_text", "mask_options", "pad_prompts", "rotate_options"]

ALPHABET = "ABCDEFGHIJ"
"""Ten options at most, as in MMLU-Pro."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Letters:
    """How a tokenizer writes multiple-choice prompts and their answers."""

    tokenizer: PreTrainedTokenizerBase
    tokens: tuple[int, ...]
    """Token of ` A`, ` B`, …; one each."""
    chat_template: str | None = None
    window: int | None = None
    """Longest prompt in tokens."""

    @classmethod
    def of(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        *,
        chat_template: str | None = None,
        window: int | None = None,
    ) -> Letters:
        """Look up the letters.

        Raises:
            InputError: a letter is more than one token.
        """
        tokens: list[int] = []
        for letter in ALPHABET:
            ids = encode_option(tokenizer, [0], f" {letter}")
            if len(ids) != 1:
                raise InputError(
                    f"the tokenizer of {tokenizer.name_or_path or type(tokenizer).__name__} writes the "
                    f"option letter {letter!r} as {len(ids)} tokens; re-mixing decides a single token, so "
                    "take a model whose letters are one token each."
                )
            tokens.append(ids[0])
        return cls(
            tokenizer=tokenizer, tokens=tuple(tokens), chat_template=chat_template, window=window
        )

    @property
    def tokens_O(self) -> torch.Tensor:
        """The letters' tokens as a tensor."""
        return torch.tensor(self.tokens)

    @property
    def prompt_hash(self) -> str:
        """Identifies wording, template and letters: states made under others are of no use."""
        own = self.tokenizer.chat_template
        template = str(own) if self.chat_template is None else load_template(self.chat_template)
        return hash_prompts("letter-choice")[:16] + hash_text(f"{self.tokens}{template}")[:16]

    def encode(self, question: Question) -> list[int]:
        """The prompt of a choice, up to the token that the letter follows.

        Raises:
            InputError: no options, too many, or a prompt that is longer than the window.
        """
        if not 2 <= len(question.options) <= len(ALPHABET):
            raise InputError(
                f'question "{question.id}" has {len(question.options)} options; re-mixing decides '
                f"between 2 and {len(ALPHABET)}."
            )
        messages = build_messages(question, style="letter")
        ids = encode_chat(self.tokenizer, messages, chat_template=self.chat_template)
        if self.window is not None and len(ids) > self.window:
            raise InputError(
                f'the prompt of question "{question.id}" has {len(ids)} tokens, more than the window of '
                f"{self.window}; shorten the question or raise the expert's context."
            )
        return ids


def hash_text(text: str) -> str:
    """A sha256 in hexadecimal digits."""
    import hashlib

    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def pad_prompts(
    prompts: Sequence[Sequence[int]], device: torch.device | str = "cpu"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask [B, T], padded at the left."""
    longest = max(map(len, prompts))
    gaps = [longest - len(prompt) for prompt in prompts]
    # What stands in the gaps does not matter: they are masked.
    ids = [[*[0] * gap, *prompt] for gap, prompt in zip(gaps, prompts, strict=True)]
    mask = [[0] * gap + [1] * (longest - gap) for gap in gaps]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def rotate_options(question: Question, steps: int) -> Question:
    """The same choice with its options moved `steps` places up, and its gold letter with them.

    Neighbours whose gold letters are the same could teach a routing the letter instead of the matter
    (c3po.md §4.1); rotated ones cannot.
    """
    from dataclasses import replace

    number = len(question.options)
    steps %= number
    options = (*question.options[steps:], *question.options[:steps])
    gold = question.gold
    if gold is not None:
        gold = ALPHABET[(ALPHABET.index(gold) - steps) % number]
    return replace(question, options=options, gold=gold)


def mask_options(logits_QO: torch.Tensor, questions: Sequence[Question]) -> torch.Tensor:
    """Logits of the options that each question has; the others' are −inf."""
    options_Q = torch.tensor([len(q.options) for q in questions], device=logits_QO.device)
    places_O = torch.arange(logits_QO.shape[-1], device=logits_QO.device)
    return logits_QO.masked_fill(places_O >= options_Q[:, None], -torch.inf)
