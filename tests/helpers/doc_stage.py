"""Where the blocks of a page are run one after another, as a reader would; and whether a page shows what they print.

Ports of 127.0.0.1 are replaced by free ones on pages with a server.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TextIO

from doc_blocks import Block

__all__ = ["Stage", "is_shown"]

FIGURE = re.compile(r"[−+-]?\d[\d.,]*|[─━═]+| {2,}")

DRIVER = """
import ast, asyncio, contextlib, inspect, io, json, linecache, os, sys, traceback, types
said = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)                               # what a library prints by itself is no output of the page
page = sys.modules["__main__"] = types.ModuleType("__main__")
with asyncio.Runner() as runner:
    for line in sys.stdin:
        name, source = json.loads(line)
        linecache.cache[name] = (len(source), None, source.splitlines(True), name)
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            error = None
            try:
                code = compile(source, name, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
                if code.co_flags & inspect.CO_COROUTINE:
                    runner.run(eval(code, page.__dict__))
                else:
                    exec(code, page.__dict__)
            except BaseException:
                error = traceback.format_exc()
        print(json.dumps([printed.getvalue(), error]), file=said, flush=True)
"""


class Stage:
    """A folder in which the blocks of a page are run one after another."""

    def __init__(self, folder: Path, blocks: list[Block]) -> None:
        self._folder = folder
        self._blocks = blocks
        self._open = contextlib.ExitStack()
        self._python: subprocess.Popen[str] | None = None
        self._servers: list[subprocess.Popen[bytes]] = []
        self._ports: dict[str, str] = {}
        self._environment = {
            **os.environ,
            "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
            "COLUMNS": "110",
            "NO_COLOR": "1",
            "TERM": "dumb",
            "PYTHONWARNINGS": "default",
        }
        if any("server" in block.names for block in blocks):
            told = re.findall(r"(?:127\.0\.0\.1:|--port )(\d+)", "".join(b.source for b in blocks))
            self._ports = {port: find_port() for port in ("8000", *told)}

    def run(self, block: Block) -> str:
        """Run a block; its output."""
        source = re.sub(
            r"(127\.0\.0\.1:|--port )(\d+)",
            lambda found: found[1] + self._ports.get(found[2], found[2]),
            block.source,
        )
        if block.file is not None:
            path = self._folder / block.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source, encoding="utf-8")
            return ""
        if "server" in block.names:
            self._serve(block, source)
            return ""
        return self._run_python(block, source) if block.language == "python" else self._run_shell(block, source)  # fmt: skip

    def _run_shell(self, block: Block, source: str) -> str:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", source],
            cwd=self._folder, env=self._environment, text=True, capture_output=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{block}: status {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"  # fmt: skip
        return done.stdout

    def _run_python(self, block: Block, source: str) -> str:
        if self._python is None:
            self._python = subprocess.Popen(
                [sys.executable, "-c", DRIVER],
                cwd=self._folder, env=self._environment, text=True, start_new_session=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log(".stderr"),
            )  # fmt: skip
        assert self._python.stdin is not None
        assert self._python.stdout is not None
        print(json.dumps([str(block), source]), file=self._python.stdin, flush=True)
        line = self._python.stdout.readline()
        assert line, f"{block}: Python ended: {(self._folder / '.stderr').read_text()[-3000:]}"
        printed, error = json.loads(line)
        assert error is None, f"{block}: {error}"
        return printed

    def _log(self, name: str) -> TextIO:
        return self._open.enter_context((self._folder / name).open("w", encoding="utf-8"))

    def _serve(self, block: Block, source: str) -> None:
        """Start a server; whoever says no port means 8000."""
        words = shlex.split(source.replace("\\\n", " "), comments=True)
        if "--port" not in words:
            words += ["--port", self._ports["8000"]]
        port = words[words.index("--port") + 1]
        log = self._folder / f".server-{port}"
        server = subprocess.Popen(
            ["env", *words],
            cwd=self._folder, env=self._environment, stdout=self._log(log.name), stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        self._servers.append(server)
        for _ in range(600):
            assert server.poll() is None, f"{block}: it ended: {log.read_text()[-3000:]}"
            with contextlib.suppress(urllib.error.URLError, ConnectionError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                return
            time.sleep(0.1)
        raise AssertionError(f"{block}: no answer from {port}: {log.read_text()[-3000:]}")

    def close(self) -> None:
        """End what is left of the page: Python by the end of its input, servers by SIGTERM."""
        with self._open:
            self._end()

    def _end(self) -> None:
        if self._python is not None:
            assert self._python.stdin is not None
            self._python.stdin.close()
        for server in self._servers:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGTERM)
        for process in (self._python, *self._servers):
            if process is None:
                continue
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                raise AssertionError("a process of the page would not end") from None
        if self._python is not None and self._python.stdout is not None:
            self._python.stdout.close()


def find_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def is_shown(shown: str, printed: str, *, exactly: bool) -> bool:
    """Whether a page shows what was printed."""

    def tidy(text: str) -> list[str]:
        lines = [line.rstrip() for line in text.strip("\n").splitlines()]
        if exactly:
            return lines
        return [FIGURE.sub(lambda found: " #"[found[0].strip() != ""], line).strip() for line in lines]  # fmt: skip

    parts = ["(?:.*\n)*" if line.strip() == "…" else re.escape(line) + "\n" for line in tidy(shown)]
    return re.fullmatch("".join(parts), "".join(f"{line}\n" for line in tidy(printed))) is not None
