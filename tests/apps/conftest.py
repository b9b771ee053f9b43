"""The real command line, forked from a process that has imported it: a run costs a tenth of a start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

SERVER = """
import contextlib, json, os, sys
from expertmix.apps import cli, session
from expertmix.retrieval import MiniLM

with contextlib.suppress(Exception):  # what most commands import sooner or later
    MiniLM().embed_query("?")

def start(order):
    pid = os.fork()
    if pid:
        return pid
    os.setsid()
    os.chdir(order["cwd"])
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, path in ((1, order["out"]), (2, order["err"])):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.closerange(3, 64)
    os.environ.update(order["env"])
    # In the child the streams still buffer for the parent's descriptors.
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False)
    sys.argv = ["expertmix", *order["arguments"]]
    code = 1
    try:
        cli.main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        import traceback
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

for line in sys.stdin:
    pid = start(json.loads(line))
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def expertmix(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Runs `expertmix ARGUMENTS` in a folder and gives what `subprocess.run` would give."""
    server = subprocess.Popen(
        [sys.executable, "-W", "ignore::SyntaxWarning", "-c", SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    stdin, stdout = server.stdin, server.stdout
    assert stdin is not None
    assert stdout is not None
    folder = tmp_path_factory.mktemp("command-line")
    out, err = folder / "out", folder / "err"

    def run(*arguments: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
        changed = {k: v for k, v in os.environ.items() if k.startswith(("EXPERTMIX", "HF_"))} | env
        order = {"arguments": arguments, "cwd": str(cwd), "env": changed}
        stdin.write(json.dumps({**order, "out": str(out), "err": str(err)}) + "\n")
        stdin.flush()
        code = int(stdout.readline())
        return subprocess.CompletedProcess(
            arguments, code, out.read_text("utf-8"), err.read_text("utf-8")
        )

    yield run
    stdin.close()
    stdout.close()
    server.wait(10)
