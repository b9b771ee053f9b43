"""What a chat model's settings and a call's arguments wish of an expert, and what an expert can do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from ...agents.pool import ExpertSpec
from ...agents.pool.specs import TransformersExpert, VllmExpert
from ...retrieval import InputError
from .messages import to_tools
from .structure import to_choice, to_functions

if TYPE_CHECKING:
    from langchain_core.language_models.model_profile import ModelProfile

__all__ = ["SETTINGS", "describe", "read_wishes"]

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
FORMS = ("json_schema", "response_format", "tools", "tool_choice", "strict")
"""What `with_structured_output`, `bind_tools` and LangChain's agents add to a call."""
OPAQUE = frozenset({"replay", "scripted", "given"})
"""Engines of which the pool file does not say what is behind them."""


def read_wishes(spec: ExpertSpec, wishes: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a `Request` that they are about: sampling, tools and tool_choice.

    Args:
        spec: The expert's own settings hold where the wishes have None.
        wishes: `SETTINGS`; `json_schema`, or `response_format` as OpenAI has it; `tools` and `tool_choice`.
            `strict` is accepted and changes nothing: schemas are always kept.

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
    wanted["json_schema"] = _read_schema(wishes)
    sampling = replace(
        spec.sampling.to_sampling(), **{k: v for k, v in wanted.items() if v is not None}
    )
    told = to_functions(wishes.get("tools") or ())
    choice = to_choice(wishes.get("tool_choice"), told) if told else "auto"
    return {"sampling": sampling, "tools": to_tools(told), "tool_choice": choice}


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
        # transformers can offer tools, but hold an answer to nothing.
        bound = spec.engine != "transformers"
        known |= {"tool_calling": True, "tool_choice": bound, "structured_output": bound}
    if isinstance(spec, VllmExpert | TransformersExpert):
        known["open_weights"] = True
        if spec.context is not None:
            known["max_input_tokens"] = spec.context
    return cast("ModelProfile", known)


def _read_schema(wishes: Mapping[str, Any]) -> Mapping[str, Any] | None:
    schema, form = wishes.get("json_schema"), wishes.get("response_format")
    if schema is not None or form is None:
        return schema
    kind = form.get("type") if isinstance(form, Mapping) else type(form).__name__
    match kind:
        case "text":
            return None
        case "json_object":
            return {"type": "object"}
        case "json_schema" if isinstance(form["json_schema"].get("schema"), Mapping):
            return form["json_schema"]["schema"]
        case _:
            raise InputError(
                f"response_format is of type {kind!r}; it must be text, json_object, or json_schema with one"
            )
