"""Why a body is refused: one sentence that names the field and what could not be done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from .errors import ApiError, clean
from .requests import is_for_panel

__all__ = ["explain_refusal"]

BODY = "the body must be a JSON object with model and messages, sent as application/json"
TOOLS = "its newer names are tools and tool_choice"
REFUSED = {
    "audio": "answers are text",
    "function_call": TOOLS,
    "functions": TOOLS,
    "frequency_penalty": "only 0 can be honoured",
    "image_url": "text parts only: no media is fetched or read here",
    "input_audio": "text parts only: no media is fetched or read here",
    "logit_bias": "tokens cannot be biased here",
    "modalities": 'only ["text"] can be honoured',
    "presence_penalty": "only 0 can be honoured",
    "reasoning_effort": "how long an expert thinks cannot be set; max_tokens bounds what it writes",
    "store": "nothing is kept here; only false can be honoured",
    "verbosity": "how much an expert writes cannot be set; max_tokens bounds it",
    "web_search_options": "nothing is looked up on the web",
}
"""Fields of OpenAI's that cannot be honoured, and why."""
PANEL_REFUSED = {
    "logprobs": "the panel's answer is no single text; ask expert/… for log-probabilities",
    "n": "the panel gives one answer; ask for one",
    "response_format": "the panel's answer has its own form; ask expert/… for a JSON schema",
    "top_logprobs": "the panel's answer is no single text; ask expert/… for log-probabilities",
}
EXPERT_REFUSED = {
    "expertmix": "it is for the models expertmix/…; an expert gets its messages as they are"
}


def explain_refusal(errors: Sequence[Mapping[str, Any]], body: object) -> ApiError:
    """One sentence for a body that was refused: which field, and why.

    Args:
        errors: pydantic's.
        body: What they are about. Nothing of it is quoted but the names of fields.
    """
    # Of the ways in which a union can be missed, the one that went deepest was meant.
    error = max(errors, key=lambda error: len(error["loc"]))
    where = _locate(error, body)
    if not where:
        return ApiError(400, BODY)
    path, top, name = _name(where), str(where[0]), str(where[-1])
    if error["type"] == "missing":
        return ApiError(400, f'"{path}" is missing', param=path)
    reasons = REFUSED | (PANEL_REFUSED if is_for_panel(body) else EXPERT_REFUSED)
    if top in reasons and (len(where) == 1 or top not in REFUSED):
        return ApiError(400, f"{top}: {reasons[top]}", param=top, code="unsupported_parameter")
    if name in REFUSED or (name == "type" and "content" in where):
        reason = REFUSED.get(name, REFUSED["image_url"])
        return ApiError(400, f"{path}: {reason}", param=path, code="unsupported_value")
    if error["type"] == "extra_forbidden":
        return ApiError(400, f'unknown field "{path}"', param=path, code="unknown_parameter")
    told = clean(str(error["msg"])).removeprefix("Value error, ")
    return ApiError(400, f"{path}: {told[:300]}", param=path)


def _locate(error: Mapping[str, Any], body: object) -> list[str | int]:
    """An error's place in the body, without the names that pydantic gives the members of a union."""
    parts: list[str | int] = [part for part in error["loc"] if part != "body"]
    where: list[str | int] = []
    value = body
    for at, part in enumerate(parts):
        if isinstance(value, dict) and part in value:
            value = cast("dict[object, object]", value)[part]
        elif isinstance(value, list) and isinstance(part, int):
            value = cast("list[object]", value)[part]
        elif error["type"] != "missing" or at < len(parts) - 1:
            continue
        where.append(part)
    return where


def _name(where: Sequence[str | int]) -> str:
    """`messages[0].content`."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in where)
    return clean("".join(parts).removeprefix("."))[:200]
