"""Answers in a form: what a panel's chat model binds for it, and how the answer is read back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any, Literal, get_args

from langchain_core.language_models import LanguageModelInput
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser
from langchain_core.output_parsers.openai_tools import (
    JsonOutputKeyToolsParser,
    PydanticToolsParser,
)
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from langchain_core.utils.pydantic import is_basemodel_subclass

from ...retrieval import InputError

__all__ = ["Method", "bind_structure", "to_choice", "to_functions"]

Method = Literal["json_schema", "function_calling", "json_mode"]
"""`json_schema`: what is written is constrained to the schema. `function_calling`: the schema is a tool that
must be called. `json_mode`: any JSON object; the schema has to stand in the prompt."""
ToolLike = Mapping[str, Any] | type | Callable[..., Any] | BaseTool


def to_functions(tools: Sequence[ToolLike]) -> list[dict[str, Any]]:
    """Tools as they are bound to a model, and shown to whoever traces it.

    Raises:
        InputError: one is no function.
    """
    told: list[dict[str, Any]] = []
    for tool in tools:
        try:
            function = convert_to_openai_tool(tool)  # pyright: ignore[reportArgumentType]
        except (ValueError, TypeError) as error:
            raise InputError(f"this is no tool: {tool!r} ({error})") from None
        if function.get("type") != "function":
            raise InputError(f"only functions can be offered, not {function.get('type')!r}")
        told.append(function)
    return told


def to_choice(choice: Any, tools: Sequence[Mapping[str, Any]]) -> str:
    """A choice of tools, in the ways in which LangChain's users say it, as engines take it.

    Args:
        choice: `any` and True ask for at least one call, False and None leave it to the model; a name, or
            OpenAI's or Anthropic's objects, ask for that tool.
        tools: From `to_functions`.

    Raises:
        InputError: nothing of that.
    """
    names = [tool["function"]["name"] for tool in tools]
    if choice is None or choice is False:
        return "auto"
    if choice is True or (choice == "any" and "any" not in names):
        return "required"
    if isinstance(choice, Mapping):
        choice = choice.get("function", choice).get("name", choice.get("type"))
    if choice in ("auto", "none", "required") or choice in names:
        return choice
    raise InputError(f"tool_choice is {choice!r}; it must be auto, none, any, or one of {names}")


def bind_structure(
    model: BaseChatModel, schema: Any, *, method: str, include_raw: bool, strict: bool | None
) -> Runnable[LanguageModelInput, Any]:
    """A model that answers with objects.

    Args:
        model: Takes `json_schema` as an argument of its calls, and tools.
        schema: A pydantic class, a TypedDict, a JSON Schema or an OpenAI function.
        method: See `Method`.
        include_raw: Whether to give `raw`, `parsed` and `parsing_error` instead of the object alone.
        strict: As OpenAI has it; with `json_schema` the form is kept in any case.

    Raises:
        InputError: there is no such method.
    """
    if method not in get_args(Method):
        raise InputError(f"method is {method!r}; it must be one of {', '.join(get_args(Method))}")
    # A schema of the deprecated kind of pydantic has no JSON Schema that a parser could read back.
    is_class = isinstance(schema, type) and is_basemodel_subclass(schema)
    shown = {"kwargs": {"method": method, "strict": strict}, "schema": schema}
    if method == "function_calling":
        bound = model.bind_tools([schema], tool_choice="any", ls_structured_output_format=shown)
        parser: Runnable[Any, Any]
        if is_class:
            parser = PydanticToolsParser(tools=[schema], first_tool_only=True)
        else:
            name = convert_to_openai_tool(schema)["function"]["name"]
            parser = JsonOutputKeyToolsParser(key_name=name, first_tool_only=True)
    else:
        form = {"type": "object"} if method == "json_mode" else convert_to_json_schema(schema)
        bound = model.bind(json_schema=form, ls_structured_output_format=shown)
        parser = PydanticOutputParser(pydantic_object=schema) if is_class else JsonOutputParser()
    if not include_raw:
        return bound | parser
    read = RunnablePassthrough.assign(
        parsed=itemgetter("raw") | parser, parsing_error=lambda _: None
    )
    missed = RunnablePassthrough.assign(parsed=lambda _: None)
    return RunnableMap(raw=bound) | read.with_fallbacks([missed], exception_key="parsing_error")
