"""The command: it says where it listens, refuses what would be unsafe, and ends in order."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
import typer
from typer.testing import CliRunner

from expertmix.apps.serve_commands import serve
from expertmix.retrieval import InputError

# The command in a process of its own for each line of options, forked from one that has imported everything:
# that costs seconds.
COMMANDS = """
import json, os, signal, sys, typer
from expertmix.apps import server
from expertmix.apps.cli import _terminate
from expertmix.apps.serve_commands import serve

app = typer.Typer()
app.command()(serve)
pids = []
for folder, options in json.loads(sys.argv[1]):
    pids.append(os.fork())
    if not pids[-1]:
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT), number)
        signal.signal(signal.SIGTERM, _terminate)
        os.chdir(folder)
        app(options)
print(json.dumps(pids), flush=True)
print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]), flush=True)
"""
ASKED = {"model": "expert/a", "messages": [{"role": "user", "content": "my secret question"}]}


def write_pool(place: Path, latency: float) -> str:
    (place / "a.json").write_text(json.dumps({"*": "Answer: Paris"}))
    row = {"alias": "a", "engine": "scripted", "script": "a.json", "latency": latency}
    path = place / "pool.yaml"
    path.write_text(json.dumps({"experts": [row]}))
    return str(path)


def wait_for(has_come: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not has_come():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.01)


class Server:
    """One of the running commands."""

    def __init__(self, place: Path, pid: int) -> None:
        self.place = place
        self.pid = pid
        wait_for(lambda: (place / "stdout").exists() and self.read("stdout").endswith("\n"))
        start, _, url = self.read("stdout").strip().partition(" on ")
        assert start == "serving"
        assert url.startswith("http://127.0.0.1:")
        self.web = httpx.Client(base_url=url, trust_env=False, verify=False, timeout=60)
        self.statuses: list[int] = []

    def read(self, name: str) -> str:
        return (self.place / name).read_text()

    def ask(self) -> int:
        return self.web.post("/v1/chat/completions", json=ASKED).status_code

    def ask_in_a_thread(self) -> threading.Thread:
        """Ask, and return once that is being worked on."""
        thread = threading.Thread(target=lambda: self.statuses.append(self.ask()))
        thread.start()
        wait_for(lambda: "expertmix_server_running 1.0" in self.web.get("/metrics").text)
        return thread


@pytest.fixture
def commands(tmp_path: Path) -> Iterator[tuple[Server, Server, Callable[[], list[int]]]]:
    """A server that answers soon, one that does not, and what waits for their exit codes."""
    places = [tmp_path / "soon", tmp_path / "late"]
    lines: list[tuple[str, list[str]]] = []
    for place, latency, grace in zip(places, (1.5, 300.0), ("60", "0.2"), strict=True):
        place.mkdir()
        pool = write_pool(place, latency)
        lines.append((str(place), ["--pool", pool, "--port", "0", "--grace", grace]))
    process = subprocess.Popen(
        [sys.executable, "-c", COMMANDS, json.dumps(lines)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    pids = json.loads(process.stdout.readline())
    try:
        soon, late = (Server(place, pid) for place, pid in zip(places, pids, strict=True))
        yield soon, late, lambda: json.loads(process.stdout.readline())  # pyright: ignore[reportOptionalMemberAccess]
        soon.web.close()
        late.web.close()
    finally:
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:  # a test has failed
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()
        process.stdout.close()


def test_it_finishes_what_runs_takes_nothing_more_and_gives_up_what_lasts(
    commands: tuple[Server, Server, Callable[[], list[int]]],
) -> None:
    soon, late, wait = commands
    told: list[str] = []

    def stream() -> None:
        with late.web.stream("POST", "/v1/chat/completions", json={**ASKED, "stream": True}) as got:
            told.extend(got.iter_lines())

    threads = [server.ask_in_a_thread() for server in (soon, late)]
    threads.append(threading.Thread(target=stream))
    threads[-1].start()
    wait_for(lambda: "expertmix_server_running 2.0" in late.web.get("/metrics").text)
    for server in (soon, late):
        os.kill(server.pid, signal.SIGTERM)
    wait_for(lambda: soon.web.get("/health").status_code == 503)
    assert soon.ask() == 503
    assert wait() == [0, 128 + signal.SIGTERM]
    for thread in threads:
        thread.join()
    assert (soon.statuses, late.statuses) == ([200], [503])
    assert [line for line in told if line][-1] == "data: [DONE]"
    assert '"code": "draining"' in "".join(told)
    assert " expert/a 200 " in soon.read("stderr")
    assert soon.read("stderr").endswith("ended: every request that was running has been answered\n")
    assert late.read("stderr").endswith("ended: requests given up: 2\n")
    for server in (soon, late):
        assert "secret" not in server.read("stderr")
        assert "Traceback" not in server.read("stderr")
        assert "Exception" not in server.read("stderr")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--host", "0.0.0.0"], "0.0.0.0 can be reached from other machines"),
        (["--api-key-env", "NO_SUCH_KEY"], "NO_SUCH_KEY is empty or not set"),
        (["--k", "7"], "k is 7"),
        (["--max-calls", "1", "--samples", "2"], "may make 2 calls"),
        (["--policy", "knn"], "policy knn needs a profile"),
    ],
)
def test_what_cannot_be_served_is_told_in_a_sentence(
    tmp_path: Path, options: list[str], words: str
) -> None:
    app = typer.Typer()
    app.command()(serve)
    pool = write_pool(tmp_path, 0.0)
    result = CliRunner().invoke(app, ["--pool", str(pool), "--port", "0", *options])
    assert isinstance(result.exception, InputError)
    assert words in str(result.exception)


def test_a_port_that_is_taken_is_told_in_a_sentence(tmp_path: Path) -> None:
    from expertmix.apps.server import open_socket

    app = typer.Typer()
    app.command()(serve)
    with open_socket("127.0.0.1", 0) as taken:
        port = str(taken.getsockname()[1])
        arguments = ["--pool", str(write_pool(tmp_path, 0.0)), "--port", port]
        result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, InputError)
    assert f"127.0.0.1:{port} cannot be listened on" in str(result.exception)
