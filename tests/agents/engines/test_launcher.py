"""The zygote forks processes on demand, says how they end, and leaves none behind."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from expertmix.agents.engines import EngineError
from expertmix.agents.engines.frames import pack, receive_frame
from expertmix.agents.engines.launcher import Launched, Launcher

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def launcher() -> AsyncIterator[Launcher]:
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("needs vllm")
    launcher = Launcher()
    yield launcher
    await launcher.close()


async def exit_code(launched: Launched) -> int | None:
    return await asyncio.wait_for(asyncio.shield(launched.exited), 10)


def broken(folder: Path, package: str, line: str) -> str:
    """A folder for PYTHONPATH with a package whose import fails."""
    (folder / package).mkdir()
    (folder / package / "__init__.py").write_text(line, encoding="utf-8")
    return os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))


@pytest.mark.real
async def test_a_process_leaves_when_our_end_of_its_connection_closes(launcher: Launcher) -> None:
    launched = await launcher.launch("a")
    assert psutil.pid_exists(launched.pid)
    launched.release()

    assert await exit_code(launched) == 0
    assert not psutil.pid_exists(launched.pid)


@pytest.mark.real
async def test_the_way_a_process_ended_is_reported_to_the_right_one(launcher: Launcher) -> None:
    first, second = await asyncio.gather(launcher.launch("a"), launcher.launch("b"))
    assert first.pid != second.pid
    os.kill(first.pid, signal.SIGKILL)

    assert await exit_code(first) == -signal.SIGKILL
    assert not second.exited.done()
    second.kill()
    assert await exit_code(second) == -signal.SIGKILL
    for launched in (first, second):
        launched.release()


@pytest.mark.real
async def test_a_failed_load_is_one_sentence_and_its_traceback_stays_in_the_log(
    launcher: Launcher, tmp_path: Path
) -> None:
    launched = await launcher.launch("a")
    launched.connection.setblocking(True)
    config = {"model": str(tmp_path), "adapters": {"law": str(tmp_path / "none")}}
    settings = (
        "dtype",
        "revision",
        "context_length",
        "kv_cache_bytes",
        "max_batch",
        "gpu",
        "sleeps",
    )
    config |= dict.fromkeys((*settings, "gpu_memory_utilization", "chat_template"))
    launched.connection.sendall(pack({"op": "load", "config": config}))

    report = await asyncio.to_thread(receive_frame, launched.connection)

    assert report is not None
    assert report["op"] == "failed"
    assert report["message"].endswith("has no adapter_config.json")
    assert await exit_code(launched) == 1
    assert "adapter_config.json" in launched.last_words()
    launched.release()


@pytest.mark.real
async def test_vllm_is_imported_before_the_first_process_is_asked_for(launcher: Launcher) -> None:
    assert await launcher.start() > 0
    launched = await launcher.launch("a")
    zygote = psutil.Process(launched.pid).parent()
    assert zygote is not None
    assert zygote.ppid() == os.getpid()
    assert zygote.memory_info().rss > 100 << 20
    launched.release()
    await exit_code(launched)


@pytest.mark.real
async def test_when_the_zygote_dies_so_do_its_processes(launcher: Launcher) -> None:
    launched = await launcher.launch("a")
    process = psutil.Process(launched.pid)
    os.kill(process.ppid(), signal.SIGKILL)

    assert await exit_code(launched) is None
    _, alive = await asyncio.to_thread(psutil.wait_procs, [process], 5)
    assert not [one for one in alive if one.status() != psutil.STATUS_ZOMBIE]
    launched.release()


@pytest.mark.real
async def test_a_later_launch_starts_a_new_zygote_and_closing_ends_every_process(
    launcher: Launcher,
) -> None:
    others = set(psutil.Process().children())
    launched = [await launcher.launch("a"), await launcher.launch("b")]
    await launcher.close()
    await launcher.close()

    assert [await exit_code(one) for one in launched] == [None, None]
    assert not any(psutil.pid_exists(one.pid) for one in launched)
    assert set(psutil.Process().children()) <= others
    for one in launched:
        one.release()


async def test_a_vllm_that_cannot_be_imported_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = set(psutil.Process().children())
    path = broken(tmp_path, "vllm", "raise ImportError('libcudart.so.13: cannot open')")
    monkeypatch.setenv("PYTHONPATH", path)
    launcher = Launcher(logs=tmp_path / "logs")

    with pytest.raises(EngineError, match="libcudart") as caught:
        await launcher.launch("a")

    assert "\n" not in str(caught.value)
    assert "expertmix doctor" in str(caught.value)
    assert set(psutil.Process().children()) <= others
    assert list((tmp_path / "logs").iterdir())


async def test_closing_while_vllm_is_imported_does_not_wait_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", broken(tmp_path, "vllm", "import time; time.sleep(60)"))
    launcher = Launcher()
    starting = asyncio.create_task(launcher.start())
    await asyncio.sleep(0.2)
    async with asyncio.timeout(5):
        await launcher.close()

    with pytest.raises(EngineError, match="gone"):
        await starting


@pytest.mark.parametrize("package", ["torchvision", "torchcodec"])
async def test_a_companion_of_another_torch_build_looks_absent(
    tmp_path: Path, package: str
) -> None:
    program = (
        "import importlib.util as u\n"
        "from expertmix.agents.engines.zygote import hide_broken_companions as hide\n"
        f"print(u.find_spec({package!r}) is not None, hide(), u.find_spec({package!r}))"
    )
    line = "raise RuntimeError('operator torchvision::nms does not exist')"
    run = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": broken(tmp_path, package, line)},
        capture_output=True,
        text=True,
        check=True,
    )

    assert run.stdout.strip() == f"True ['{package}'] None"
