"""The process that has vLLM imported and forks one child for each engine.

Importing vLLM costs five to fifteen seconds; a fork of a process that has done so costs none. This
is a program of its own (`python -m expertmix.agents.engines.zygote FD PARENT`) rather than
`multiprocessing`, whose children import the user's `__main__` again: a script without an
`if __name__ == "__main__"` would run twice.

Orders come over a socket of whole packets (SOCK_SEQPACKET), one JSON object each:
`{"op": "launch", "id": n}` with two file descriptors (the engine's socket, its log) and
`{"op": "kill", "id": n}`. It reports `ready` or `failed` once, then `launched` and `exited`. When
the parent goes, by whatever death, the socket ends: the zygote kills its children and leaves.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import gc
import importlib
import importlib.util
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Sequence
from typing import Any

from . import worker
from .reasons import root_reason

__all__ = ["Zygote", "hide_broken_companions", "main", "preload"]

_PACKET = 1 << 16  # bytes; far more than an order takes
_PR_SET_PDEATHSIG = 1


def hide_broken_companions() -> list[str]:
    """Make torchvision, torchaudio and torchcodec look absent where they do not fit this torch.

    PyPI's torchvision is a CUDA build; next to a CPU torch its import fails, and with it every
    model import of transformers (vllm#15372), although text models need none of the three.

    Returns:
        The names that were hidden.
    """
    hidden: list[str] = []
    for name in ("torchvision", "torchaudio", "torchcodec"):
        if importlib.util.find_spec(name) is None:
            continue
        try:
            importlib.import_module(name)
        except Exception:  # a linkage failure shows as RuntimeError, OSError or ImportError
            for loaded in [m for m in sys.modules if m.partition(".")[0] == name]:
                del sys.modules[loaded]
            sys.modules[name] = None  # pyright: ignore[reportArgumentType]
            hidden.append(name)
    return hidden


def preload() -> None:
    """Import everything that every engine needs, and nothing that claims a device.

    Raises:
        RuntimeError: the imports initialised CUDA, which no fork survives.
    """
    hide_broken_companions()
    importlib.import_module("vllm")
    from vllm.platforms import current_platform  # pyright: ignore[reportMissingImports]

    runner = "cpu_worker" if current_platform.is_cpu() else "gpu_worker"
    for name in (
        "vllm.entrypoints.llm",
        "vllm.v1.engine.llm_engine",
        f"vllm.v1.worker.{runner}",
        "vllm.model_executor.models.llama",
        "xgrammar",
        "psutil",
    ):
        # Module paths move between vLLM's versions; a missed one only costs its engine a second.
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    import torch

    # Not testable without a GPU: vLLM finds its platform through NVML, so importing it leaves CUDA
    # alone and a child may initialise it after the fork.
    if torch.cuda.is_initialized():
        raise RuntimeError("importing vLLM initialised CUDA, so engines cannot be forked from it")
    gc.collect()
    gc.freeze()  # children neither scan nor copy the pages of what was imported


class Zygote:
    """The loop: take orders, fork, reap, report."""

    def __init__(self, control: socket.socket, parent: int) -> None:
        self.control = control
        self.parent = parent
        self.children: dict[int, int] = {}  # pid -> the id under which it was ordered

    def run(self) -> None:
        """Serve until the parent has gone."""
        wake, waker = os.pipe()
        for end in (wake, waker):
            os.set_blocking(end, False)
        signal.signal(signal.SIGCHLD, _wake)
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        try:
            # The time-out is for a parent whose end of the socket was inherited by another
            # process: then nothing ends the socket, but our own parent changes.
            while os.getppid() == self.parent:
                ready, _, _ = select.select([self.control, wake], [], [], 1.0)
                if wake in ready:
                    os.read(wake, 4096)
                self.reap()
                if self.control in ready and not self.obey():
                    return
        finally:
            self.kill(list(self.children))
            for pid in self.children:
                os.waitpid(pid, 0)  # not every container has an init that buries orphans

    def obey(self) -> bool:
        """Take one order. False once there can be no more."""
        size = array.array("i").itemsize * 2
        try:
            data, descriptors, _, _ = socket.recv_fds(self.control, _PACKET, size)
        except ConnectionError:
            return False
        if not data:
            return False
        order = json.loads(data)
        if order["op"] == "launch":
            self.launch(order["id"], descriptors)
        elif order["op"] == "kill":
            self.kill([pid for pid, ordered in self.children.items() if ordered == order["id"]])
        return True

    def launch(self, ordered: int, descriptors: Sequence[int]) -> None:
        """Fork an engine's process."""
        zygote = os.getpid()
        pid = os.fork()
        if pid == 0:
            _become_engine(zygote, self.control, *descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        self.children[pid] = ordered
        self.report(op="launched", id=ordered, pid=pid)

    def reap(self) -> None:
        """Collect children that have exited and report how."""
        for pid in list(self.children):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                code = os.waitstatus_to_exitcode(status)
                self.report(op="exited", id=self.children.pop(pid), code=code)

    def kill(self, pids: Sequence[int]) -> None:
        """End children that are ours and not yet reaped, so that no pid can have been reused."""
        for pid in pids:
            os.kill(pid, signal.SIGKILL)

    def report(self, **message: Any) -> None:
        """Tell the parent; if it has gone, the loop will notice."""
        with contextlib.suppress(OSError):
            self.control.send(json.dumps(message).encode())


def _wake(_signal: int, _frame: object) -> None:
    """Do nothing: only a signal that has a handler writes to the wake-up pipe."""


def _become_engine(zygote: int, control: socket.socket, connection: int, log: int) -> None:
    """The child's whole life. Never returns into the zygote's loop.

    Args:
        zygote: Who forked it. Asked for here, the parent could already be another one.
        control: Open in the child too.
        connection: Descriptor of the engine's own socket.
        log: Descriptor of what it prints to.
    """
    code = 1
    try:
        control.close()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        # Linux kills this process when the zygote dies, even in the middle of a long step.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        for stream in (1, 2):
            os.dup2(log, stream)
        os.close(log)
        if os.getppid() == zygote:
            worker.main(socket.socket(fileno=connection))
            code = 0
    except BaseException:
        import traceback

        traceback.print_exc()  # into the log: nobody else is left to hear it
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def main(arguments: Sequence[str]) -> int:
    """Run the zygote.

    Args:
        arguments: The inherited descriptor of the control socket, and the parent's process id.
    """
    descriptor, parent = (int(text) for text in arguments)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which closes us
    zygote = Zygote(socket.socket(fileno=descriptor), parent)
    begun = time.monotonic()
    try:
        preload()
    except Exception as error:
        zygote.report(op="failed", message=root_reason(error))
        return 1
    zygote.report(op="ready", seconds=time.monotonic() - begun)
    zygote.run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
