"""Tools on offer and answers in a form: what both chat models bind for them, and how answers are read back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any, Literal, cast, get_args

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
NO_PARAMETERS: Mapping[str, Any] = {"type": "object", "properties": {}}
ToolLike = Mapping[str, Any] | type | Callable[..., Any] | BaseTool


def to_functions(tools: Sequence[ToolLike]) -> list[dict[str, Any]]:
    """Tools as they are bound to a model, and shown to whoever traces it.

    Args:
        tools: Whatever LangChain takes: tools, functions, pydantic classes, dictionaries.

    Returns:
        OpenAI's objects. The `function` of each has a name, a description and parameters, no more and no less,
        as a `Request` has them.

    Raises:
        InputError: one is no function, such as a provider's own web search.
    """
    told: list[dict[str, Any]] = []
    for tool in tools:
        try:
            found = convert_to_openai_tool(tool)  # pyright: ignore[reportArgumentType]
        except (ValueError, TypeError) as error:
            raise InputError(f"this is no tool: {tool!r} ({error})") from None
        if found.get("type") != "function":
            kind = found.get("type")
            raise InputError(f"only functions can be offered, not the tool {kind!r}")
        function = {
            "name": found["function"]["name"],
            "description": found["function"].get("description", ""),
            "parameters": found["function"].get("parameters") or NO_PARAMETERS,
        }
        told.append({"type": "function", "function": function})
    return told


def to_choice(choice: Any, tools: Sequence[Mapping[str, Any]]) -> str:
    """A choice of tools, in the ways in which LangChain's users say it, as engines take it.

    Args:
        choice: `any` and True ask for at least one call, False and None leave it to the model; a name, or
            OpenAI's or Anthropic's objects, ask for that tool; their objects without a name say the same as
            their `type` alone.
        tools: From `to_functions`.

    Raises:
        InputError: nothing of that, or a call is asked for where there is no tool.
    """
    names = [tool["function"]["name"] for tool in tools]
    said = _unwrap(cast("Mapping[str, Any]", choice)) if isinstance(choice, Mapping) else choice
    if said is None or said is False:
        return "auto"
    if said is True or (said == "any" and "any" not in names):
        said = "required"
    if said in ("auto", "none") or said in names or (said == "required" and names):
        return said
    there = ", ".join(names) or "no tool: none is offered"
    raise InputError(f"tool_choice is {choice!r}; it must be auto, none, any, or one of {there}")


def _unwrap(choice: Mapping[str, Any]) -> Any:
    """The name in OpenAI's or Anthropic's object, or its type where it has none."""
    function = choice.get("function")
    named = cast("Mapping[str, Any]", function) if isinstance(function, Mapping) else choice
    return named.get("name") or choice.get("type")


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
