"""A process that is told to end, or is killed, and another one that goes on."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest

from expertmix.graph import drain_on_signal

RUN = str(Path(__file__).with_name("durable_run.py"))


def start(folder: Path, durability: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, RUN, str(folder), durability], stdout=subprocess.PIPE, text=True
    )


def wait_for(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdout is not None
    for said in process.stdout:
        if said.strip() == line:
            return
    raise AssertionError(f"the process ended without saying {line!r}")


def count_asked(folder: Path) -> Counter[str]:
    return Counter((folder / "asked").read_text().split("\n")[:-1])


@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
def test_sigterm_finishes_the_step_and_the_next_run_goes_on(
    tmp_path: Path, durability: str
) -> None:
    with start(tmp_path, durability) as process:
        wait_for(process, "finished quick")
        process.send_signal(signal.SIGTERM)
        told, _ = process.communicate(timeout=60)
    assert process.returncode == 143
    assert told.splitlines() == ["finished slow", "drained SIGTERM"]
    with start(tmp_path, durability) as process:
        told, _ = process.communicate(timeout=60)
    assert told.splitlines() == ["verdicts 3"]
    assert set(count_asked(tmp_path).values()) == {1}, "nobody is asked twice"


def test_kill_costs_only_what_was_not_finished(tmp_path: Path) -> None:
    with start(tmp_path, "sync") as process:
        wait_for(process, "finished quick")
        # The expert has said so; its answers are written a moment later.
        threading.Event().wait(0.3)
        process.kill()
    with start(tmp_path, "sync") as process:
        told, _ = process.communicate(timeout=60)
    assert told.splitlines() == ["finished slow", "verdicts 3"]
    asked = count_asked(tmp_path)
    assert {number for who, number in asked.items() if who.startswith("quick")} == {1}


def test_the_handler_from_before_is_back_afterwards() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with drain_on_signal() as control:
        signal.raise_signal(signal.SIGTERM)
        assert control.drain_requested
        assert control.drain_reason == "SIGTERM"
        assert signal.getsignal(signal.SIGTERM) is before, "a second signal acts as before"
    assert signal.getsignal(signal.SIGTERM) is before


def test_another_thread_is_told_where_it_works() -> None:
    said: list[str] = []

    def elsewhere() -> None:
        try:
            with drain_on_signal():
                pass
        except RuntimeError as error:
            said.append(str(error))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert "main thread" in said[0]
