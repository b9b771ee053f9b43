"""Bodies of `/v1/chat/completions`: what is read, what is ignored, and what is refused because it cannot be done.

A field that would change the answer and cannot be honoured is refused by name, never ignored. What the
models below accept is exactly what the OpenAPI document says.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag

from .settings import PANEL_PREFIX
from .turns import Strict, Text, Turn, insist_on_text

__all__ = [
    "LARGEST_SEED",
    "AnyChatRequest",
    "ChatRequest",
    "ChoiceOptions",
    "ExpertRequest",
    "FunctionSpec",
    "JsonSchema",
    "NamedFunction",
    "NamedTool",
    "ObjectFormat",
    "OpenOptions",
    "PanelRequest",
    "SchemaFormat",
    "StreamOptions",
    "TextFormat",
    "Tool",
    "is_for_panel",
]

LARGEST_SEED = (1 << 63) - 1


def _insist_on_bool(value: object) -> object:
    if not isinstance(value, bool):  # to Python, 0 is False
        raise ValueError("only false can be honoured")
    return value


def _read_whole(value: object) -> object:
    """To JSON Schema, 5.0 is an integer."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Count = Annotated[int, Field(ge=1), BeforeValidator(_read_whole)]
One = Annotated[int, Field(ge=1, le=1), BeforeValidator(_read_whole)]
Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED), BeforeValidator(_read_whole)]
Alternatives = Annotated[int, Field(ge=0, le=20), BeforeValidator(_read_whole)]
No = Annotated[Literal[False], BeforeValidator(_insist_on_bool)]


class StreamOptions(Strict):
    """How a stream is sent."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    """Ignored."""


Stop = Annotated[Text, Field(min_length=1)]


class TextFormat(Strict):
    """An answer of any form."""

    type: Literal["text"]


ToolName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


class FunctionSpec(Strict):
    """What a model is told of a tool."""

    name: ToolName
    description: Text | None = None
    parameters: Annotated[dict[str, Any], AfterValidator(insist_on_text)] | None = None
    """A JSON Schema; without one, the tool takes nothing."""
    strict: bool | None = None
    """Ignored: arguments come as the model wrote them."""


class Tool(Strict):
    """A tool that a model may ask to have called. Nothing is called here."""

    type: Literal["function"]
    function: FunctionSpec


class NamedFunction(Strict):
    """The name of a tool."""

    name: ToolName


class NamedTool(Strict):
    """The tool that must be called; one of `tools`."""

    type: Literal["function"]
    function: NamedFunction


class ChatRequest(Strict):
    """What requests to panels and to experts have in common."""

    model: str
    messages: Annotated[list[Turn], Field(min_length=1)]
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: Seed | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    """Anything but `none` and `auto` needs tools."""
    parallel_tool_calls: bool | None = None
    """`false`: of several calls that are asked for, the first is told."""

    # Without any bearing on the answer: ignored.
    metadata: dict[str, Any] | None = None
    prediction: dict[str, Any] | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    safety_identifier: str | None = None
    service_tier: str | None = None
    user: str | None = None

    # Accepted with the one value that changes nothing.
    audio: None = None
    frequency_penalty: float | None = Field(None, ge=0, le=0)
    function_call: Literal["none"] | None = None
    functions: Annotated[list[Any], Field(max_length=0)] | None = None
    logit_bias: Annotated[dict[str, Any], Field(max_length=0)] | None = None
    modalities: Annotated[list[Literal["text"]], Field(min_length=1, max_length=1)] | None = None
    presence_penalty: float | None = Field(None, ge=0, le=0)
    reasoning_effort: None = None
    store: No | None = None
    verbosity: None = None
    web_search_options: None = None

    @property
    def most_tokens(self) -> int | None:
        """The newer of the two names wins."""
        newer = self.max_completion_tokens
        return self.max_tokens if newer is None else newer

    @property
    def stops(self) -> tuple[str, ...]:
        """Strings that end the answer."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def specs(self) -> tuple[dict[str, Any], ...]:
        """The tools as engines take them."""
        functions = [tool.function for tool in self.tools or ()]
        return tuple(
            {
                "name": function.name,
                "description": function.description or "",
                "parameters": function.parameters or {"type": "object", "properties": {}},
            }
            for function in functions
        )

    @property
    def choice(self) -> str:
        """Which tool is to be called, as engines take it."""
        choice = self.tool_choice
        return choice.function.name if isinstance(choice, NamedTool) else choice or "auto"

    @property
    def most_calls(self) -> int | None:
        """How many calls the answer may ask for; None for any number."""
        return 1 if self.parallel_tool_calls is False else None

    @property
    def counts_usage(self) -> bool:
        """Whether a stream ends with what it cost."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)


QuestionId = Annotated[str, Field(pattern=r"^[!-~]{1,64}$")]


class ChoiceOptions(Strict):
    """A multiple-choice question."""

    options: Annotated[
        list[Annotated[Text, Field(min_length=1)]], Field(min_length=2, max_length=26)
    ]
    """The choices, without their letters."""
    kind: Literal["choice"] = "choice"
    id: QuestionId | None = None
    """What draws depend on; by default it follows from the question itself."""
    format: Literal["text", "answer"] = "text"
    """`text`: an answer to read. `answer`: the answer alone."""


class OpenOptions(Strict):
    """A question without choices."""

    options: Annotated[list[str], Field(max_length=0)] | None = None
    kind: Literal["number", "text"] = "text"
    id: QuestionId | None = None
    format: Literal["text", "answer"] = "text"


SPEAKING: dict[str, Any] = {
    "contains": {
        "type": "object",
        "required": ["role", "content"],
        "properties": {
            "role": {"const": "user"},
            "content": {
                "anyOf": [
                    {"type": "string", "pattern": r"\S"},
                    {
                        "type": "array",
                        "contains": {
                            "type": "object",
                            "required": ["text"],
                            "properties": {"text": {"type": "string", "pattern": r"\S"}},
                        },
                    },
                ]
            },
        },
    }
}


class PanelRequest(ChatRequest):
    """To `expertmix/…`: a question for the panel."""

    messages: Annotated[list[Turn], Field(min_length=1, json_schema_extra=SPEAKING)]
    expertmix: ChoiceOptions | OpenOptions | None = None
    n: One | None = None
    logprobs: No | None = None
    top_logprobs: None = None
    response_format: TextFormat | None = None


class JsonSchema(Strict):
    """A schema for an answer, as OpenAI wraps it."""

    name: str
    schema_: Annotated[dict[str, Any], AfterValidator(insist_on_text)] = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None


class ObjectFormat(Strict):
    """An answer that is any JSON object."""

    type: Literal["json_object"]


class SchemaFormat(Strict):
    """An answer that fits a JSON Schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


class ExpertRequest(ChatRequest):
    """To `expert/ALIAS`: messages for one expert, as they are."""

    n: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Alternatives | None = None
    expertmix: None = None
    response_format: (
        Annotated[TextFormat | ObjectFormat | SchemaFormat, Field(discriminator="type")] | None
    ) = None


def is_for_panel(body: object) -> bool:
    """Whether a body that nobody has checked yet names a panel."""
    row = cast("dict[str, object]", body) if isinstance(body, dict) else {}
    model = row.get("model")
    return isinstance(model, str) and model.startswith(PANEL_PREFIX)


AnyChatRequest = Annotated[
    Annotated[PanelRequest, Tag("panel")] | Annotated[ExpertRequest, Tag("expert")],
    Discriminator(lambda body: "panel" if is_for_panel(body) else "expert"),
]
