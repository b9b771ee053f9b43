"""LangChain's OpenAI chat model talks to the server as it does to OpenAI."""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from pydantic import BaseModel, SecretStr

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("langchain_openai") is None, reason="needs langchain-openai"
)


@pytest.fixture
def seen(start: Any) -> Any:
    """A server of its own for each test: LangChain keeps clients by address, beyond their loop."""
    return start({"a": "Answer: Paris", "b": '{"city": "Paris"}'})


@asynccontextmanager
async def connected(seen: Any, model: str, **more: Any) -> AsyncGenerator[Any]:
    from langchain_openai import ChatOpenAI

    key, url = SecretStr("none"), f"{seen.url}/v1"
    chat = ChatOpenAI(model=model, base_url=url, api_key=key, max_retries=0, **more)
    try:
        yield chat
    finally:
        await chat.root_async_client.close()


async def test_it_invokes_batches_and_streams(seen: Any) -> None:
    conversation = [("system", "Be brief."), ("user", "Where?"), ("ai", "Where?"), ("user", "Yes.")]
    async with connected(seen, "expert/a", temperature=0.3, seed=4) as model:
        reply = await model.ainvoke(conversation)
        assert reply.content == "Answer: Paris"
        assert reply.usage_metadata["total_tokens"] == 5 + 2
        assert reply.response_metadata["model_name"] == "expert/a"
        assert [r.content for r in await model.abatch(["Where?", "Who?"])] == ["Answer: Paris"] * 2
        pieces = [chunk async for chunk in model.astream("Where?")]
    assert "".join(str(piece.content) for piece in pieces) == "Answer: Paris"
    sampling = seen.engines["a"].requests[-1].sampling
    assert (sampling.temperature, sampling.seed) == (0.3, 4)


async def test_a_panel_streams_through_it(seen: Any) -> None:
    options = {"expertmix": {"format": "answer"}}
    async with connected(seen, "expertmix/auto", stream_usage=True, extra_body=options) as model:
        pieces = [chunk async for chunk in model.astream("Where?")]
    whole = pieces[0]
    for piece in pieces[1:]:
        whole = whole + piece
    assert whole.content in ("Paris", '{"city": "Paris"}')
    assert whole.usage_metadata["output_tokens"] > 0


async def test_structured_output_comes_back_as_an_object(seen: Any) -> None:
    class Place(BaseModel):
        """A place."""

        city: str

    async with connected(seen, "expert/b") as model:
        asks = model.with_structured_output(Place, method="json_schema")
        assert await asks.ainvoke("Where?") == Place(city="Paris")
    assert seen.engines["b"].requests[-1].sampling.json_schema["required"] == ["city"]
