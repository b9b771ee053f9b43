"""From messages to token ids, the same for every engine that runs weights itself.

The chat template is applied once and is the only source of special tokens: the tokenizer's own
post-processor, which would add a second BOS, is never asked. What people and models wrote stays
text: a control token spelled out inside a message is broken up before the template sees it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...retrieval import InputError
from .base import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["encode_chat", "encode_option", "load_template", "neutralise"]

PROMPTS = Path(__file__).parents[1] / "prompts"
ANCHOR = "\n"
MARKER = re.compile(r"[<\[{(].{2,}[>\]})]", re.DOTALL)
PIPED = re.compile(r"<\|.*\|>", re.DOTALL)


def encode_chat(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    *,
    chat_template: str | None = None,
) -> list[int]:
    """Apply the chat template once and return the prompt's token ids.

    A final `assistant` message is continued; after any other, the template opens the assistant's
    turn. A template that refuses or drops system messages gets their text at the head of the first
    user turn instead. Contents pass through `neutralise`, so they cannot forge a turn.

    Args:
        tokenizer: A transformers tokenizer.
        messages: At least one.
        chat_template: Jinja text, or the name of a template that ships with us (`"plain"`, for base
            models); used instead of the tokenizer's own.

    Raises:
        InputError: no messages, no template, or a template that refuses the messages.
    """
    if not messages:
        raise InputError(
            "There is nothing to ask: the list of messages is empty; give at least one."
        )
    template = _template(tokenizer, chat_template)
    turns = _as_text(tokenizer, messages, template)
    has_system = any(turn["role"] == "system" for turn in turns)
    if has_system and not _keeps_system(tokenizer, turns, template):
        turns = _fold_system(turns)
    return _apply(tokenizer, turns, template)


def encode_option(
    tokenizer: PreTrainedTokenizerBase, prompt_ids: Sequence[int], option: str
) -> list[int]:
    """Return the ids of `option` as the continuation of `prompt_ids`, without special tokens.

    The option is taken literally: where a space belongs between prompt and option, it is the
    option's first character. It is encoded behind a line break that is then cut off, because
    SentencePiece tokenizers put a space before a text's first word that a continuation lacks.

    Raises:
        InputError: an empty option.
    """
    if not option:
        raise InputError("An option to score is empty; give each option at least one character.")
    text = neutralise(tokenizer, option)
    anchor, joint = _plain_ids(tokenizer, ANCHOR), _plain_ids(tokenizer, ANCHOR + text)
    if prompt_ids and joint[: len(anchor)] == anchor and len(joint) > len(anchor):
        return joint[len(anchor) :]
    return _plain_ids(tokenizer, text)


def neutralise(
    tokenizer: PreTrainedTokenizerBase, text: str, chat_template: str | None = None
) -> str:
    """Break up every control token that is spelled out in `text`, so that it encodes as text.

    Tokenizers turn `<|im_start|>` into the control token wherever it stands, also inside a message,
    which would let a message end its own turn and speak as somebody else. A space goes after the
    first character (`< |im_start|>`): still readable, and no longer the token. Control tokens are
    all that the tokenizer calls special, all of the form `<|…|>`, and bracketed ones which the chat
    template itself writes, such as `<tool_call>`. Other text comes back unchanged.

    Role markers that a template writes as ordinary words (`### User:`) are not tokens; no encoding
    can tell them from text, and they are left alone.
    """
    pattern = _controls(tokenizer, chat_template or "")
    return text if pattern is None else _neutral(tokenizer, text, pattern)


def load_template(name_or_text: str) -> str:
    """Return Jinja text as it is, and the text of a template that ships with us for its name.

    Raises:
        InputError: a name that does not exist.
    """
    if "{" in name_or_text:
        return name_or_text
    known = {path.stem: path for path in sorted(PROMPTS.glob("*.jinja"))}
    if name_or_text not in known:
        raise InputError(
            f"There is no chat template named {name_or_text!r}; use one of "
            f"{', '.join(map(repr, known))} or give the Jinja text itself."
        )
    return known[name_or_text].read_text(encoding="utf-8")


def _as_text(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], template: str
) -> list[Message]:
    """The messages without control tokens in their contents."""
    pattern = _controls(tokenizer, template)
    if pattern is None:
        return list(messages)
    return [
        Message(role=turn["role"], content=_neutral(tokenizer, turn["content"], pattern))
        for turn in messages
    ]


def _template(tokenizer: PreTrainedTokenizerBase, chat_template: str | None) -> str:
    if chat_template is not None:
        return load_template(chat_template)
    own = _own_template(tokenizer)
    if own is None:
        raise InputError(
            f"The tokenizer of {_name(tokenizer)} has no chat template, as is usual for base models; "
            "set chat_template: plain for this expert, or give a Jinja template."
        )
    return own


def _own_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    template: Any = tokenizer.chat_template
    if isinstance(template, dict):
        return template.get("default")
    return template


def _name(tokenizer: PreTrainedTokenizerBase) -> str:
    return repr(tokenizer.name_or_path or type(tokenizer).__name__)


def _apply(
    tokenizer: PreTrainedTokenizerBase, turns: Sequence[Message], template: str
) -> list[int]:
    try:
        return list(_render(tokenizer, turns, template, tokenize=True)["input_ids"])
    except _template_errors() as error:
        raise InputError(
            f"The chat template of {_name(tokenizer)} refuses these messages: {_line(error)}"
        ) from error


def _render(tokenizer: Any, turns: Sequence[Message], template: str, *, tokenize: bool) -> Any:
    continues = turns[-1]["role"] == "assistant"
    return tokenizer.apply_chat_template(
        [dict(turn) for turn in turns],
        chat_template=template,
        tokenize=tokenize,
        return_dict=tokenize,
        continue_final_message=continues,
        add_generation_prompt=not continues,
    )


def _template_errors() -> tuple[type[Exception], ...]:
    from jinja2 import TemplateError

    return (TemplateError, ValueError)


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _keeps_system(
    tokenizer: PreTrainedTokenizerBase, turns: Sequence[Message], template: str
) -> bool:
    """Whether the rendered chat holds every system text: some templates drop it without a word."""
    try:
        text = _render(tokenizer, turns, template, tokenize=False)
    except _template_errors():
        return False
    return all(turn["content"].strip() in text for turn in turns if turn["role"] == "system")


def _fold_system(turns: Sequence[Message]) -> list[Message]:
    system = "\n\n".join(turn["content"] for turn in turns if turn["role"] == "system")
    others = [turn for turn in turns if turn["role"] != "system"]
    for position, turn in enumerate(others):
        if turn["role"] == "user":
            folded = Message(role="user", content=f"{system}\n\n{turn['content']}")
            return [*others[:position], folded, *others[position + 1 :]]
    return [Message(role="user", content=system), *others]


def _controls(tokenizer: PreTrainedTokenizerBase, template: str) -> re.Pattern[str] | None:
    """Matches every string that must not be read as a token; None if there is none."""
    templates = template + (_own_template(tokenizer) or "")
    found = {str(token) for token in tokenizer.all_special_tokens}
    for token in tokenizer.added_tokens_decoder.values():
        written = MARKER.fullmatch(token.content) and token.content in templates
        if token.special or PIPED.fullmatch(token.content) or written:
            found.add(token.content)
    longest_first = sorted((token for token in found if token.strip()), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


def _neutral(tokenizer: PreTrainedTokenizerBase, text: str, pattern: re.Pattern[str]) -> str:
    text = _broken(pattern, text)
    normalised = _normalised(tokenizer, text)
    return _broken(pattern, normalised) if pattern.search(normalised) else text


def _broken(pattern: re.Pattern[str], text: str) -> str:
    # Twice: breaking one token may, in a contrived vocabulary, leave another behind.
    for _ in range(2):
        text = pattern.sub(_split, text)
    return text


def _split(match: re.Match[str]) -> str:
    token = match[0]
    return f"{token[0]} {token[1:]}" if len(token) > 1 else " "


def _normalised(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """What the tokenizer matches its tokens against, if it rewrites the text before."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    normalizer: Any = getattr(backend, "normalizer", None)
    return text if normalizer is None else str(normalizer.normalize_str(text))


def _plain_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    encoded: Any = tokenizer(text, add_special_tokens=False)
    return list(encoded["input_ids"])
