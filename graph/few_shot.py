"""The same neighbours as solved examples in the prompt: what re-mixing has to beat (kNN few-shot)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..agents.engines import Message
from ..agents.engines.tokens import encode_chat
from ..agents.moe.bank import StateBank
from ..agents.moe.letters import Letters, mask_options, pad_prompts
from ..agents.moe.neighbourhood import Neighbourhood
from ..agents.reason import build_messages
from ..retrieval import Question

__all__ = ["answer_with_examples", "encode_with_examples"]

BATCH = 8


def answer_with_examples(
    questions: StateBank, bank: StateBank, neighbourhood: Neighbourhood
) -> tuple[torch.Tensor, list[int]]:
    """Logits [Q, O] of the option letters behind the neighbours as examples, the nearest last.

    Examples that do not fit the model's window are left out, the farthest first.

    Args:
        questions: To answer.
        bank: Holds the neighbours.
        neighbourhood: Who they are.

    Returns:
        The logits, and the prompts' lengths in tokens.
    """
    moe, letters = questions.moe, questions.letters
    prompts: list[list[int]] = []
    for place, question in enumerate(questions.questions):
        rows = neighbourhood.rows_QN[place][neighbourhood.present_QN[place]].tolist()
        examples = [bank.questions[row] for row in rows]
        prompts.append(encode_with_examples(letters, question, examples))
    order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
    tokens_O = letters.tokens_O.to(moe.device)
    logits_QO = torch.zeros(len(prompts), len(letters.tokens))
    for start in range(0, len(order), BATCH):
        places = order[start : start + BATCH]
        ids_BT, mask_BT = pad_prompts([prompts[place] for place in places], moe.device)
        with torch.no_grad():
            output = moe.base(
                input_ids=ids_BT,
                attention_mask=mask_BT,
                position_ids=(mask_BT.cumsum(-1) - 1).clamp(min=0),
                use_cache=False,
            )
            found = moe.read_logits(output.last_hidden_state[:, -1], tokens_O)
        logits_QO[places] = found.float().cpu()
    return mask_options(logits_QO, questions.questions), [len(prompt) for prompt in prompts]


def encode_with_examples(
    letters: Letters, question: Question, examples: Sequence[Question]
) -> list[int]:
    """The prompt of a question behind solved examples, the nearest last.

    Args:
        letters: How the model is asked.
        question: To answer.
        examples: The nearest first, with gold letters.

    Raises:
        InputError: even the question alone is longer than the window.
    """
    for number in range(len(examples), 0, -1):
        turns: list[Message] = []
        for example in reversed(examples[:number]):
            asked = build_messages(example, style="letter")[0]
            turns += [asked, Message(role="assistant", content=f"Answer: {example.gold}")]
        messages = [*turns, *build_messages(question, style="letter")]
        ids = encode_chat(letters.tokenizer, messages, chat_template=letters.chat_template)
        if letters.window is None or len(ids) <= letters.window:
            return ids
    return letters.encode(question)
