"""What a chat model's settings and a call's arguments wish of an expert, and what an expert can do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from ...agents.pool import ExpertSpec
from ...agents.pool.specs import TransformersExpert, VllmExpert
from ...retrieval import InputError
from .structure import to_choice, to_functions

if TYPE_CHECKING:
    from langchain_core.language_models.model_profile import ModelProfile

__all__ = [
    "FORMS",
    "SETTINGS",
    "describe",
    "keeps_schemas",
    "read_most_calls",
    "read_schema",
    "read_tools",
    "read_wishes",
]

SETTINGS = (
    "temperature",
    "top_p",
    "max_tokens",
    "stop",
    "seed",
    "logprobs",
    "top_logprobs",
)
"""Fields of the model, and arguments of a call."""
FORMS = (
    "json_schema",
    "response_format",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "strict",
)
"""What `with_structured_output`, `bind_tools` and LangChain's agents add to a call."""
OPAQUE = frozenset({"replay", "scripted", "given"})
"""Engines of which the pool file does not say what is behind them."""


def read_wishes(spec: ExpertSpec, wishes: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a `Request` that they are about: sampling, tools and tool_choice.

    Args:
        spec: The expert's own settings hold where the wishes have None.
        wishes: `SETTINGS` and `FORMS`. `strict` is accepted and changes nothing: schemas are always kept.
            `parallel_tool_calls` is about the reply, see `read_most_calls`.

    Raises:
        InputError: a wish that is not known here, or that cannot be read.
    """
    unknown = sorted(wishes.keys() - {*SETTINGS, *FORMS})
    if unknown:
        known = ", ".join(("model", *SETTINGS, *FORMS))
        raise InputError(f"an expert does not know {', '.join(unknown)}; a call may say {known}")
    stop, alternatives = wishes.get("stop"), wishes.get("top_logprobs")
    wanted: dict[str, Any] = {
        name: wishes.get(name) for name in ("temperature", "top_p", "max_tokens", "seed")
    }
    wanted["stop"] = None if stop is None else tuple([stop] if isinstance(stop, str) else stop)
    if wishes.get("logprobs") or alternatives is not None:
        wanted["logprobs"] = alternatives or 0
    wanted["json_schema"] = read_schema(wishes)
    sampling = replace(
        spec.sampling.to_sampling(), **{k: v for k, v in wanted.items() if v is not None}
    )
    tools, choice = read_tools(wishes)
    return {"sampling": sampling, "tools": tools, "tool_choice": choice}


def read_tools(wishes: Mapping[str, Any]) -> tuple[tuple[Mapping[str, Any], ...], str]:
    """The tools that a call brings and the choice among them, as a `Request` has them.

    Raises:
        InputError: something is no tool, or no choice.
    """
    told = to_functions(wishes.get("tools") or ())
    choice = to_choice(wishes.get("tool_choice"), told)
    return tuple(one["function"] for one in told), choice


def read_most_calls(wishes: Mapping[str, Any]) -> int | None:
    """How many calls of a reply are kept; None keeps all. No engine can be told to make only one."""
    return 1 if wishes.get("parallel_tool_calls") is False else None


def read_schema(wishes: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The JSON Schema that an answer has to keep: `json_schema`, or OpenAI's `response_format`.

    Raises:
        InputError: a `response_format` that is none.
    """
    schema, form = wishes.get("json_schema"), wishes.get("response_format")
    if schema is not None or form is None:
        return schema
    match form:
        case {"type": "text"}:
            return None
        case {"type": "json_object"}:
            return {"type": "object"}
        case {"type": "json_schema", "json_schema": {"schema": Mapping() as found}}:
            return cast("Mapping[str, Any]", found)
        case _:
            kind = form.get("type") if isinstance(form, Mapping) else type(form).__name__
            raise InputError(
                f"response_format is of type {kind!r}; it must be text, json_object, or json_schema with one"
            )


def keeps_schemas(spec: ExpertSpec, *, with_tools: bool = False) -> bool:
    """Whether an expert's answers can be held to a JSON Schema; true where nobody knows."""
    # LangChain's chat models take a schema or tools, but not both.
    return spec.engine != "transformers" and not (with_tools and spec.engine == "chat_model")


def describe(spec: ExpertSpec) -> ModelProfile:
    """What is known of an expert before it is asked, as LangChain's profiles say it."""
    known: dict[str, Any] = {
        "name": spec.alias,
        "text_inputs": True,
        "image_inputs": False,
        "audio_inputs": False,
        "video_inputs": False,
        "pdf_inputs": False,
        "text_outputs": True,
        "temperature": spec.engine != "replay",
        "max_output_tokens": spec.sampling.max_tokens,
    }
    if spec.engine not in OPAQUE:
        # LangChain's agents ask for a form and offer tools in one request where this says that it is kept.
        known |= {
            "tool_calling": True,
            "tool_choice": keeps_schemas(spec),
            "structured_output": keeps_schemas(spec, with_tools=True),
        }
    if isinstance(spec, VllmExpert | TransformersExpert):
        known["open_weights"] = True
        if spec.context is not None:
            known["max_input_tokens"] = spec.context
    return cast("ModelProfile", known)
