"""Both harnesses against `expertmix serve` over loopback, with nothing of ours on their side."""

from __future__ import annotations

import gc
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from expertmix.agents import Pool
from expertmix.agents.engines import Request
from expertmix.agents.engines.scripted import ScriptedEngine
from expertmix.apps.session import PanelSettings

pytest.importorskip("fastapi", reason="needs the extra serve")
pytest.importorskip("uvicorn", reason="needs the extra serve")
pytest.importorskip("lm_eval", reason="needs the extra harness")
pytest.importorskip("inspect_ai", reason="needs the extra harness")

import httpx
import uvicorn
from inspect_ai import Task, eval
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.scorer import match
from lm_eval import evaluator
from lm_eval.models.openai_completions import LocalChatCompletion
from lm_eval.tasks import TaskManager

from expertmix.apps.server import ServerSettings, create_app, open_socket

pytestmark = [
    # inspect-ai gives tenacity an argument that tenacity has renamed, and leaves streams to the collector;
    # lm_eval leaves its connections to it.
    pytest.mark.filterwarnings("ignore:The 'initial' parameter:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Unclosed <MemoryObject:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
]
CAPITALS = {"France": "Paris", "Italy": "Rome", "Norway": "Oslo"}
TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}, cache_dir: {cache}}}
test_split: test
output_type: generate_until
doc_to_text: "What is the capital of {{{{land}}}}?"
doc_to_target: "{{{{capital}}}}"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 16{more}}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""
ANSWER_ALONE = {"expertmix": {"format": "answer"}}


def know_capitals(request: Request) -> str:
    text = request.messages[-1]["content"]
    capital = next(capital for land, capital in CAPITALS.items() if land in text)
    return capital if request.question_id is None else f"I think.\nAnswer: {capital}"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A server with three experts, on a free port of this machine."""
    engines = {name: ScriptedEngine(name, know_capitals) for name in "abc"}
    with Pool.from_engines(engines) as pool, open_socket("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        app = create_app(pool, PanelSettings(), ServerSettings(port=port))
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        deadline = time.monotonic() + 20
        while not server.started:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture
def tasks(tmp_path: Path) -> TaskManager:
    data = tmp_path / "documents.jsonl"
    rows = ({"land": land, "capital": capital} for land, capital in CAPITALS.items())
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, more in (("tiny_open", ""), ("tiny_panel", ", expertmix: {format: answer}")):
        text = TASK.format(name=name, data=data, cache=tmp_path / "cache", more=more)
        (tmp_path / f"{name}.yaml").write_text(text)
    return TaskManager(include_path=str(tmp_path), include_defaults=False)


def run_lm_eval(address: str, model: str, tasks: TaskManager, name: str) -> float:
    make: Any = LocalChatCompletion
    lm = make(base_url=f"{address}/chat/completions", model=model, num_concurrent=4, max_retries=1)
    run: Any = evaluator.evaluate
    loaded = tasks.load([name])
    results = run(lm=lm, task_dict=loaded, apply_chat_template=True, bootstrap_iters=0)
    return float(results["results"][name]["exact_match,none"])


def run_inspect(address: str, model: str, folder: Path, **more: Any) -> float:
    samples = [Sample(input=f"What is the capital of {c}?", target=t) for c, t in CAPITALS.items()]
    [log] = eval(
        Task(dataset=MemoryDataset(samples), scorer=match()),
        model=f"openai-api/expertmix/{model}",
        model_base_url=address,
        log_dir=str(folder),
        log_level="error",
        display="none",
        max_retries=0,
        **more,
    )
    gc.collect()  # here its streams may complain, later they would in somebody else's test
    assert log.status == "success", log.error
    assert log.results is not None
    return log.results.scores[0].metrics["accuracy"].value


def test_lm_eval_asks_an_expert(address: str, tasks: TaskManager) -> None:
    assert run_lm_eval(address, "expert/a", tasks, "tiny_open") == 1


def test_lm_eval_asks_the_panel_for_its_answer_alone(address: str, tasks: TaskManager) -> None:
    asked = {"messages": [{"role": "user", "content": "France?"}], "model": "expertmix/auto"}
    with httpx.Client(trust_env=False) as client:  # lm_eval sends `stop` with every request
        reply = client.post(f"{address}/chat/completions", json={**asked, "stop": ["\n"]})
    if reply.status_code == 400:
        pytest.skip(f"the server's panel takes no stop strings: {reply.json()['error']['message']}")
    assert run_lm_eval(address, "expertmix/auto", tasks, "tiny_panel") == 1


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    """inspect-ai wants a key where the server wants none."""
    monkeypatch.setenv("EXPERTMIX_API_KEY", "none")


@pytest.mark.usefixtures("key")
def test_inspect_asks_an_expert(address: str, tmp_path: Path) -> None:
    assert run_inspect(address, "expert/a", tmp_path) == 1


@pytest.mark.usefixtures("key")
def test_inspect_asks_the_panel_for_its_answer_alone(address: str, tmp_path: Path) -> None:
    body = {"extra_body": ANSWER_ALONE}
    assert run_inspect(address, "expertmix/auto", tmp_path, **body) == 1
