"""However a run is interrupted, the same command goes on, and ends with the answers of an undisturbed one."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

NUMBER = 200
ALIASES = ("one", "two", "three")
REQUESTS = NUMBER * len(ALIASES)
SOLVE = ("solve", "questions.jsonl", "--out", "run", "--json")
SENTENCE = "every finished answer is kept in run; run the same command to go on"

# The real command line in a process of its own, forked from one that has imported it already: a start
# costs hundredths of a second instead of one to two, so that the plug can be pulled at many moments.
SERVER = """
import contextlib, json, os, resource, sys
from expertmix.apps import cli, session

with contextlib.suppress(ImportError):
    from ortools.sat.python import cp_model

for line in sys.stdin:
    order = json.loads(line)
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.chdir(order["cwd"])
        os.dup2(write, 2)
        os.dup2(os.open(os.devnull, os.O_RDWR), 1)
        os.closerange(3, 64)
        if order["limit"] is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (order["limit"], order["limit"]))
        sys.argv = ["expertmix", *order["arguments"]]
        code = 1
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            import traceback
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(code)
    os.close(write)
    print(pid, flush=True)
    with open(read, errors="replace") as stream:
        told = stream.read()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    print(json.dumps({"code": code, "told": told}), flush=True)
"""


@dataclass(frozen=True)
class Ending:
    """How a command ended."""

    code: int
    told: str
    """What it wrote to stderr."""


class CommandLine:
    """Runs the command line, one command at a time."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-W", "ignore::SyntaxWarning", "-c", SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._running: int | None = None

    def start(self, place: Path, *arguments: str, limit: int | None = None) -> None:
        """Begin a command. One that a failed test has left behind ends."""
        if self._running is not None:
            self.signal(signal.SIGKILL)
            self.wait()
        order = {"cwd": str(place), "arguments": arguments or SOLVE, "limit": limit}
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps(order) + "\n")
        self._server.stdin.flush()
        self._running = int(self._read())

    def signal(self, number: signal.Signals) -> None:
        """Send the command a signal, unless it has ended."""
        assert self._running is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._running, number)

    def wait(self) -> Ending:
        """Its end."""
        ending = Ending(**json.loads(self._read()))
        self._running = None
        return ending

    def run(self, place: Path, *arguments: str, limit: int | None = None) -> Ending:
        """A command from beginning to end."""
        self.start(place, *arguments, limit=limit)
        return self.wait()

    def _read(self) -> str:
        assert self._server.stdout is not None
        return self._server.stdout.readline()

    def close(self) -> None:
        for stream in (self._server.stdin, self._server.stdout):
            assert stream is not None
            stream.close()
        self._server.wait(10)


@pytest.fixture(scope="module")
def cli() -> Iterator[CommandLine]:
    line = CommandLine()
    yield line
    line.close()


def lay_out(
    place: Path,
    *,
    turns: bool = True,
    latency: float = 0.1,
    last: float | None = None,
) -> Path:
    """A folder with questions and a pool; with turns, one model after the other is loaded.

    The last expert may have a latency of its own.
    """
    place.mkdir(exist_ok=True)
    experts: list[dict[str, Any]] = []
    for at, alias in enumerate(ALIASES):
        lines = {f"q{i}": f"Because of {i}.\nAnswer: {i % (2 + at)}" for i in range(NUMBER)}
        (place / f"{alias}.json").write_text(json.dumps(lines))
        expert: dict[str, Any] = {"alias": alias, "engine": "scripted", "script": f"{alias}.json"}
        seconds = latency if last is None or at < len(ALIASES) - 1 else last
        expert |= {"latency": seconds, "load_seconds": latency / 2}
        experts.append(expert | ({"memory_gib": 0.01} if turns else {}))
    devices = [{"name": "cpu", "memory_gib": 1, "parallel": 1}]
    pool = {"max_resident": 1, "devices": devices, "experts": experts}
    (place / "pool.yaml").write_text(json.dumps(pool))
    rows = ({"id": f"q{i}", "text": f"What is {i}?", "gold": f"{i % 2}"} for i in range(NUMBER))
    (place / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return place


def read_answers(place: Path) -> bytes:
    return (place / "run/answers.jsonl").read_bytes()


def read_ledger(place: Path) -> dict[str, Any]:
    return json.loads((place / "run/ledger.json").read_text())


def count_stored(place: Path) -> int:
    """Replies that are kept."""
    path = place / "run/replies.sqlite"
    if not path.exists():
        return 0
    connection = sqlite3.connect(path, timeout=10)
    try:
        return int(connection.execute("SELECT count(*) FROM replies").fetchone()[0])
    except sqlite3.OperationalError:
        return 0  # it is being made
    finally:
        connection.close()


def is_early(ending: Ending) -> bool:
    """Whether a signal came before the command had begun to do anything."""
    return ending.code == 1 and "KeyboardInterrupt" in ending.told


def wait_until(condition: Callable[[], bool], *, within: float = 20.0) -> None:
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.005)


@pytest.fixture(scope="module")
def undisturbed(cli: CommandLine, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The answers of a run that nobody disturbs."""
    place = lay_out(tmp_path_factory.mktemp("undisturbed"))
    ending = cli.run(place)
    assert ending == Ending(0, ""), ending.told
    assert read_ledger(place)["calls"] == count_stored(place) == REQUESTS
    answers = read_answers(place)
    assert answers.count(b"\n") == NUMBER
    return answers


@pytest.mark.parametrize("turns", [True, False])
def test_however_often_the_plug_is_pulled_the_answers_are_those_of_an_undisturbed_run(
    cli: CommandLine, undisturbed: bytes, tmp_path: Path, turns: bool
) -> None:
    chance = random.Random(int(turns))
    place = lay_out(tmp_path, turns=turns)
    kept = lost = 0
    for _ in range(10):
        kind = chance.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
        lost += kind == signal.SIGKILL
        cli.start(place)
        time.sleep(chance.uniform(0.1, 0.8))
        cli.signal(kind)
        ending = cli.wait()
        assert ending.code in (0, -9, 130, 143) or is_early(ending), ending.told
        assert kept <= (kept := count_stored(place)), "what was stored stays stored"
    assert cli.run(place) == Ending(0, "")
    assert read_answers(place) == undisturbed
    assert count_stored(place) == REQUESTS
    assert read_ledger(place)["calls"] <= REQUESTS, "nobody is asked again what he has answered"
    assert lost


def test_without_a_store_an_interrupted_run_begins_anew_and_ends_the_same(
    cli: CommandLine, undisturbed: bytes, tmp_path: Path
) -> None:
    place = lay_out(tmp_path)
    cli.start(place, *SOLVE, "--store", "off")
    time.sleep(0.5)
    cli.signal(signal.SIGTERM)
    assert cli.wait().code == 143
    assert cli.run(place, *SOLVE, "--store", "off").code == 0
    assert read_answers(place) == undisturbed
    assert not (place / "run/replies.sqlite").exists()


def test_only_a_kill_costs_the_ledger_anything(
    cli: CommandLine, undisturbed: bytes, tmp_path: Path
) -> None:
    chance = random.Random(7)
    place = lay_out(tmp_path)
    for _ in range(5):
        cli.start(place)
        time.sleep(chance.uniform(0.2, 0.8))
        cli.signal(chance.choice([signal.SIGTERM, signal.SIGINT]))
        cli.wait()
    assert cli.run(place).code == 0
    assert read_answers(place) == undisturbed
    assert read_ledger(place)["calls"] == REQUESTS


@pytest.mark.parametrize(
    ("kind", "code", "word"),
    [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")],
)
def test_sigterm_finishes_what_runs_and_ctrl_c_gives_it_up(
    cli: CommandLine,
    undisturbed: bytes,
    tmp_path: Path,
    kind: signal.Signals,
    code: int,
    word: str,
) -> None:
    place = lay_out(tmp_path, latency=0.5)
    cli.start(place)
    wait_until(lambda: count_stored(place) == 96)  # and the next as many are in flight
    time.sleep(0.1)
    cli.signal(kind)
    ending = cli.wait()
    assert ending.code == code
    assert ending.told == f"\n{word}: {SENTENCE}\n"
    assert count_stored(place) == (192 if kind == signal.SIGTERM else 96)
    assert read_ledger(place)["calls"] == count_stored(place)
    lay_out(tmp_path)  # the same, faster
    assert cli.run(place).code == 0
    assert read_answers(place) == undisturbed


PLANNING = """
import os, signal, time
from expertmix.agents.pool.devices import Device
from expertmix.agents.pool.exact import solve_exactly
from expertmix.agents.pool.tasks import Task

tasks = [
    Task(key=key, load_seconds=5.0, work_seconds=100.0, memory_bytes=1, name=key) for key in "abc"
]
solve_exactly(tasks, [Device(name="cpu", memory_bytes=9, lanes=2)], at_most=1e9, bound=0.0)
try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(5)
except KeyboardInterrupt:
    print("heard")
"""


@pytest.mark.skipif(importlib.util.find_spec("ortools") is None, reason="needs ortools")
def test_ctrl_c_is_heard_after_a_plan_was_computed() -> None:
    command = [sys.executable, "-W", "ignore::SyntaxWarning", "-c", PLANNING]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "heard\n"), done.stderr


def test_sigterm_finishes_what_an_address_is_asked(cli: CommandLine, tmp_path: Path) -> None:
    place = lay_out(tmp_path, turns=False, latency=0.0, last=6.0)
    cli.start(place)
    wait_until(lambda: count_stored(place) == 2 * NUMBER)
    time.sleep(1)  # by then the slow one has been asked too; nothing further would be begun
    cli.signal(signal.SIGTERM)
    # Nothing is left to ask then: the run may reach its own end before it is told that the pool has drained.
    assert cli.wait().code in (0, 143)
    assert count_stored(place) == REQUESTS


def test_a_second_sigterm_gives_up_what_runs(cli: CommandLine, tmp_path: Path) -> None:
    place = lay_out(tmp_path, turns=False, latency=0.0, last=60.0)
    cli.start(place)
    wait_until(lambda: count_stored(place) == 2 * NUMBER)
    begun = time.monotonic()
    for _ in range(2):
        cli.signal(signal.SIGTERM)
        time.sleep(0.3)
    ending = cli.wait()
    assert ending.code == 143
    assert SENTENCE in ending.told
    assert time.monotonic() - begun < 5


CLOSED_POOL = """
import asyncio, os, signal
from expertmix.agents import Pool
from expertmix.agents.engines import Request
from expertmix.agents.engines.scripted import ScriptedEngine
from expertmix.apps.interruption import Terminated, run_interruptibly

pool = Pool.from_engines({"a": ScriptedEngine("a", {"*": "x"})})
with pool:
    asked = Request(id="1", messages=({"role": "user", "content": "x"},))
    asyncio.run(pool.generate("a", [asked]))

async def work():
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.sleep(20)

try:
    run_interruptibly(work(), pool)
except Terminated:
    print("terminated")
"""


def test_sigterm_ends_a_run_whose_pool_is_closed_already() -> None:
    command = [sys.executable, "-W", "ignore::SyntaxWarning", "-c", CLOSED_POOL]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "terminated\n", done.stderr


@pytest.mark.parametrize("lost", ["ledger.json", "timeline.json", "answers.jsonl"])
def test_a_kill_between_two_files_costs_nothing(
    cli: CommandLine, undisturbed: bytes, tmp_path: Path, lost: str
) -> None:
    place = lay_out(tmp_path, latency=0.0)
    assert cli.run(place).code == 0
    (place / "run" / lost).unlink()
    ending = cli.run(place)
    assert ending == Ending(0, ""), ending.told
    assert read_answers(place) == undisturbed


@pytest.mark.parametrize("limit", [0, 5_000, 40_000, 100_000, 150_000])
def test_a_full_disk_is_one_sentence_and_with_room_the_same_command_goes_on(
    cli: CommandLine, undisturbed: bytes, tmp_path: Path, limit: int
) -> None:
    place = lay_out(tmp_path, latency=0.0)
    ending = cli.run(place, limit=limit)
    assert ending.code == 2, ending.told
    assert ending.told.startswith("error: cannot ")
    assert ending.told.count("\n") == 1
    kept = count_stored(place)
    assert cli.run(place) == Ending(0, "")
    assert read_answers(place) == undisturbed
    assert read_ledger(place)["calls"] >= REQUESTS - kept


def test_the_command_line_as_it_is_started_survives_a_kill_at_any_moment(
    undisturbed: bytes, tmp_path: Path
) -> None:
    place = lay_out(tmp_path)
    command = [sys.executable, "-m", "expertmix.apps.cli", *SOLVE]
    for kind, seconds in ((signal.SIGKILL, 0.5), (signal.SIGTERM, 1.5), (signal.SIGINT, 2.0)):
        process = subprocess.Popen(
            command, cwd=place, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(seconds)
        process.send_signal(kind)
        process.wait(60)
    done = subprocess.run(command, cwd=place, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert read_answers(place) == undisturbed
