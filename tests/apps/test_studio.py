"""`langgraph.json`: the LangGraph server takes it, serves it, and a client talks to it."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from langgraph.pregel.remote import RemoteGraph
from langgraph.types import Command
from pydantic import TypeAdapter

from expertmix.agents import AnswerStore
from expertmix.apps import studio
from expertmix.apps.chat_graph import create_chat_graph
from expertmix.graph import GraphEvent
from expertmix.retrieval import InputError, Question

pytest.importorskip("langgraph_api", reason="the LangGraph server is not installed")
sdk = pytest.importorskip("langgraph_sdk")

ROOT = Path(__file__).parents[2]
CLI = str(Path(sys.executable).with_name("langgraph"))
SAID = {"ada": "It is seven.\nAnswer: 7", "bob": "Answer: 7", "cyd": "Answer: 8"}
EVENT: TypeAdapter[Any] = TypeAdapter(GraphEvent)


def write_pool(folder: Path) -> Path:
    experts: list[dict[str, Any]] = []
    for name, line in SAID.items():
        (folder / f"{name}.json").write_text(json.dumps({"*": line}))
        experts.append({"alias": name, "engine": "scripted", "script": f"{name}.json"})
    path = folder / "pool.yaml"
    path.write_text(json.dumps({"experts": experts}))
    return path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`langgraph dev` on our `langgraph.json`, as a person would start it; its address."""
    folder = tmp_path_factory.mktemp("studio")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = folder / "log"
    settings = {
        "EXPERTMIX_POOL": str(write_pool(folder)),
        "EXPERTMIX_STORE": str(folder / "replies.sqlite"),  # the server refuses what blocks
        "EXPERTMIX_APPROVAL": "0",
    }
    quiet = {"LANGGRAPH_CLI_NO_ANALYTICS": "1", "LANGSMITH_TRACING": "false", "DO_NOT_TRACK": "1"}
    command = [CLI, "dev", "--no-browser", "--no-reload", "--host", "127.0.0.1"]
    with (
        log.open("w") as out,
        subprocess.Popen(
            [*command, "--port", str(port), "--config", str(ROOT / "langgraph.json")],
            cwd=folder,
            env={**os.environ, **settings, **quiet},
            stdout=out,
            stderr=out,
        ) as process,
    ):
        address = f"http://127.0.0.1:{port}"
        try:
            _wait_until_ready(process, address, log)
            yield address
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait_until_ready(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end and process.poll() is None:
        try:
            if httpx.get(f"{address}/ok", timeout=2).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    raise AssertionError(log.read_text()[-2000:])


@pytest.fixture
async def client(server: str) -> AsyncGenerator[Any]:
    async with sdk.get_client(url=server) as made:
        yield made


def test_the_configuration_is_valid() -> None:
    done = subprocess.run(
        [CLI, "validate", "--config", str(ROOT / "langgraph.json")],
        capture_output=True,
        text=True,
        env={**os.environ, "LANGGRAPH_CLI_NO_ANALYTICS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "2 graphs found" in done.stdout


async def test_answers_are_kept_in_the_store_that_the_environment_names(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store = AnswerStore(tmp_path / "replies.sqlite")
    monkeypatch.setenv("EXPERTMIX_POOL", str(write_pool(tmp_path)))
    monkeypatch.setenv("EXPERTMIX_STORE", str(store.path))
    graph = await studio.make_chat()
    pool = studio.open_resources().pool
    for _ in range(2):
        await graph.ainvoke({"messages": [("user", "What is 3 + 4?")]})
    assert len(store) == 3
    assert sum(pool.ledger.account(name, "reason").reused for name in SAID) == 3
    await asyncio.to_thread(studio.close_resources)


async def test_a_conversation_is_answered(client: Any) -> None:
    asked = {"messages": [{"role": "user", "content": "What is 3 + 4?"}]}
    state = await client.runs.wait(None, "expertmix", input=asked)
    said = state["messages"][-1]
    assert said["content"].startswith("It is seven.\n\nAnswer: 7")
    assert said["response_metadata"]["expertmix"]["dissent"] == {"8": ["cyd"]}
    assert said["usage_metadata"]["output_tokens"] > 0


async def test_a_thread_goes_on_and_its_steps_are_streamed(client: Any) -> None:
    thread = await client.threads.create()
    for text in ("What is 3 + 4?", "And again?"):
        told: list[Any] = []
        async for part in client.runs.stream(
            thread["thread_id"],
            "expertmix",
            input={"messages": [{"role": "user", "content": text}]},
            stream_mode=["custom", "updates"],
            stream_subgraphs=True,
        ):
            if part.event.startswith("custom"):
                told.append(EVENT.validate_python(part.data))
        kinds = {part["event"] for part in told}
        assert kinds >= {"experts_recruited", "expert_started", "questions_merged"}
    state = await client.threads.get_state(thread["thread_id"])
    assert [m["type"] for m in state["values"]["messages"]] == ["human", "ai", "human", "ai"]
    assert "Earlier in this conversation" in json.dumps(state["values"]["questions"])


async def test_the_panel_itself_is_a_remote_graph(client: Any) -> None:
    panel = RemoteGraph("panel", client=client)
    asked = Question(id="q1", text="What is 3 + 4?", kind="number").to_json()
    state = await panel.ainvoke({"questions": {"q1": asked}})
    assert isinstance(state, dict)
    assert state["verdicts"]["q1"]["answer"] == "7"


async def test_its_schemas_and_its_drawing_are_served(client: Any) -> None:
    found = {row["graph_id"]: row["assistant_id"] for row in await client.assistants.search()}
    assert set(found) == {"expertmix", "panel"}
    schemas = await client.assistants.get_schemas(found["panel"])
    assert set(schemas["input_schema"]["properties"]) == {"questions"}
    graph = await client.assistants.get_graph(found["expertmix"], xray=True)
    assert {"read_question", "tell"} <= {node["id"] for node in graph["nodes"]}


async def test_bad_input_is_an_error_and_the_server_goes_on(client: Any) -> None:
    with pytest.raises(Exception, match="user turn"):
        await client.runs.wait(
            None, "expertmix", input={"messages": [{"role": "assistant", "content": "Hm."}]}
        )
    await test_a_conversation_is_answered(client)


async def test_the_chat_graph_waits_for_approval() -> None:
    from langgraph.checkpoint.memory import InMemorySaver

    from expertmix.agents import Pool
    from expertmix.agents.engines.scripted import ScriptedEngine
    from expertmix.graph import Resources

    config: Any = {"configurable": {"thread_id": "1"}}
    engines = {name: ScriptedEngine(name, {"*": line}) for name, line in SAID.items()}
    async with Pool.from_engines(engines) as pool:
        graph = create_chat_graph(Resources(pool=pool), approval=True, checkpointer=InMemorySaver())
        asked: Any = {"messages": [("user", "What is 3 + 4?")]}
        state = await graph.ainvoke(asked, config)
        [shown] = state["__interrupt__"]
        assert shown.value["calls"] == 3
        state = await graph.ainvoke(Command(resume={"approved": True, "without": ["cyd"]}), config)
    assert state["messages"][-1].response_metadata["expertmix"]["dissent"] == {}


@pytest.mark.parametrize(
    ("variable", "value", "sentence"),
    [
        ("EXPERTMIX_K", "many", 'EXPERTMIX_K is "many"; give the number of experts per question'),
        ("EXPERTMIX_POOL", "nowhere.yaml", "nowhere.yaml"),
        ("EXPERTMIX_PROFILE", "nowhere", "nowhere"),
    ],
)
def test_what_the_environment_gets_wrong_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str, value: str, sentence: str
) -> None:
    monkeypatch.setenv("EXPERTMIX_POOL", str(write_pool(tmp_path)))
    monkeypatch.setenv(variable, value)
    with pytest.raises(InputError, match=sentence):
        asyncio.run(studio.make_chat())


def test_first_questions_that_come_together_open_one_pool(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EXPERTMIX_POOL", str(write_pool(tmp_path)))
    with ThreadPoolExecutor(8) as threads:
        asked = [threads.submit(studio.open_resources) for _ in range(8)]
        made = [each.result() for each in asked]
    assert len({id(resources.pool) for resources in made}) == 1
    studio.close_resources()
