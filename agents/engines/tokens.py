"""From messages to token ids, the same for every engine that runs weights itself.

The chat template is applied once and is the only source of special tokens: the tokenizer's own
post-processor, which would add a second BOS, is never asked. What people and models wrote stays
text: a control token spelled out inside a message is broken up before the template sees it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from ...retrieval import InputError
from .base import Message
from .tool_wording import rewrite_strings, template_turns, tool_signatures, word_tools

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["encode_chat", "encode_option", "load_template", "neutralise"]

PROMPTS = Path(__file__).parents[1] / "prompts"
ANCHOR = "\n"
MARKER = re.compile(r"[<\[{(].{2,}[>\]})]", re.DOTALL)
TOOLS = re.compile(r"\btools\b")
Turn: TypeAlias = Mapping[str, Any]
"""A turn, or a tool, as chat templates read it."""
PIPED = re.compile(r"<\|.*\|>", re.DOTALL)


def encode_chat(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    *,
    chat_template: str | None = None,
    tools: Sequence[Mapping[str, Any]] = (),
    bound: bool = False,
) -> list[int]:
    """Apply the chat template once and return the prompt's token ids.

    A final `assistant` message is continued; after any other, the template opens the assistant's
    turn. A template that refuses or drops system messages gets their text at the head of the first
    user turn instead. Contents pass through `neutralise`, so they cannot forge a turn.

    Tools, their calls and their results are worded by the template if it knows tools, else by
    `word_tools`; they pass through `neutralise` too.

    Args:
        tokenizer: A transformers tokenizer.
        messages: At least one.
        chat_template: Jinja text, or the name of a template that ships with us (`"plain"`, for base
            models); used instead of the tokenizer's own.
        tools: Tools on offer, as in a `Request`.
        bound: Whether the answer has to be a call, where that is for us to say.

    Raises:
        InputError: no messages, no template, or a template that refuses the messages.
    """
    if not messages:
        raise InputError(
            "There is nothing to ask: the list of messages is empty; give at least one."
        )
    template = _template(tokenizer, chat_template, with_tools=bool(tools))
    turns, offered = _as_text(tokenizer, messages, template), list(tools)
    if offered or any(turn["role"] == "tool" or "tool_calls" in turn for turn in turns):
        pattern = _controls(tokenizer, template)
        if pattern is not None:
            offered = rewrite_strings(offered, lambda text: _neutral(tokenizer, text, pattern))
        native = _settled(tokenizer, template_turns(turns), template, tool_signatures(offered))
        if _tells_tools(tokenizer, native, template, tool_signatures(offered)):
            return _apply(tokenizer, native, template, tool_signatures(offered))
        turns = word_tools(turns, offered, bound=bound)
    return _apply(tokenizer, _settled(tokenizer, turns, template), template)


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

    def neutral(text: str) -> str:
        return _neutral(tokenizer, text, pattern)

    turns: list[Message] = []
    for turn in messages:
        told = Message(role=turn["role"], content=neutral(turn["content"]))
        if "tool_calls" in turn:
            told["tool_calls"] = rewrite_strings(turn["tool_calls"], neutral)
        if "tool_call_id" in turn:
            told["tool_call_id"] = neutral(turn["tool_call_id"])
        turns.append(told)
    return turns


def _template(
    tokenizer: PreTrainedTokenizerBase, chat_template: str | None, *, with_tools: bool
) -> str:
    if chat_template is not None:
        return load_template(chat_template)
    own = _own_template(tokenizer, "tool_use" if with_tools else "default")
    if own is None:
        raise InputError(
            f"The tokenizer of {_name(tokenizer)} has no chat template, as is usual for base models; "
            "set chat_template: plain for this expert, or give a Jinja template."
        )
    return own


def _own_template(tokenizer: PreTrainedTokenizerBase, name: str = "default") -> str | None:
    template: Any = tokenizer.chat_template
    if isinstance(template, dict):
        return template.get(name, template.get("default"))
    return template


def _name(tokenizer: PreTrainedTokenizerBase) -> str:
    return repr(tokenizer.name_or_path or type(tokenizer).__name__)


def _settled(
    tokenizer: PreTrainedTokenizerBase,
    turns: Sequence[Turn],
    template: str,
    signatures: Sequence[Turn] = (),
) -> Sequence[Turn]:
    """The turns, with system texts at the head of the first user turn if the template drops them."""
    has_system = any(turn["role"] == "system" for turn in turns)
    if has_system and not _keeps_system(tokenizer, turns, template, signatures):
        return _fold_system(turns)
    return turns


def _apply(
    tokenizer: PreTrainedTokenizerBase,
    turns: Sequence[Turn],
    template: str,
    signatures: Sequence[Turn] = (),
) -> list[int]:
    try:
        rendered = _render(tokenizer, turns, template, signatures, tokenize=True)
        return list(rendered["input_ids"])
    except _template_errors() as error:
        raise InputError(
            f"The chat template of {_name(tokenizer)} refuses these messages: {_line(error)}"
        ) from error


def _render(
    tokenizer: Any,
    turns: Sequence[Turn],
    template: str,
    signatures: Sequence[Turn],
    *,
    tokenize: bool,
) -> Any:
    continues = turns[-1]["role"] == "assistant"
    return tokenizer.apply_chat_template(
        [dict(turn) for turn in turns],
        chat_template=template,
        tools=list(signatures) or None,
        tokenize=tokenize,
        return_dict=tokenize,
        continue_final_message=continues,
        add_generation_prompt=not continues,
    )


def _tells_tools(
    tokenizer: PreTrainedTokenizerBase,
    turns: Sequence[Turn],
    template: str,
    signatures: Sequence[Turn],
) -> bool:
    """Whether the template knows tools: the rendered chat names all of them, and all that were called."""
    if TOOLS.search(template) is None:
        return False
    try:
        text = _render(tokenizer, turns, template, signatures, tokenize=False)
    except _template_errors():
        return False
    called = [call for turn in turns for call in turn.get("tool_calls", ())]
    return all(told["function"]["name"] in text for told in [*signatures, *called])


def _template_errors() -> tuple[type[Exception], ...]:
    from jinja2 import TemplateError

    return (TemplateError, ValueError)


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _keeps_system(
    tokenizer: PreTrainedTokenizerBase,
    turns: Sequence[Turn],
    template: str,
    signatures: Sequence[Turn],
) -> bool:
    """Whether the rendered chat holds every system text: some templates drop it without a word."""
    try:
        text = _render(tokenizer, turns, template, signatures, tokenize=False)
    except _template_errors():
        return False
    return all(turn["content"].strip() in text for turn in turns if turn["role"] == "system")


def _fold_system(turns: Sequence[Turn]) -> list[Turn]:
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
