"""A model's pool is closed when nobody holds it any more, and is refused to forks of its process."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from expertmix.agents import Pool
from expertmix.agents.engines.scripted import ScriptedEngine
from expertmix.apps.chat import ChatExpert, ChatExpertmix

Make = Callable[[Path], ChatExpert | ChatExpertmix]
MODELS: list[Make] = [
    lambda file: ChatExpert(pool=file, model="a"),
    lambda file: ChatExpertmix(pool=file),
]
FORK = """
import os, signal, sys
from expertmix.agents import Pool
from expertmix.apps.chat import ChatExpert, ChatExpertmix
from expertmix.graph import make_resources
from expertmix.retrieval import InputError

file = sys.argv[1]
with Pool.from_file(file) as pool:
    models = [
        ChatExpert(pool=file, model="a"),
        ChatExpert(pool=pool, model="a"),
        ChatExpertmix(pool=file),
        ChatExpertmix(resources=make_resources(pool)),
    ]
    for model in models:
        model.invoke("hi")
    process = os.fork()
    if process == 0:
        signal.alarm(20)
        for model in models:
            try:
                model.invoke("hi")
            except InputError as error:
                print(error, flush=True)
        for model in models:
            model.close()
        print(models[0].invoke("hi").text, flush=True)  # closed, it opens a pool of this process
        models[0].close()
        os._exit(0)
    print("status", os.waitpid(process, 0)[1], flush=True)
    for model in models:
        model.invoke("hi")
        model.close()
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "lines.json").write_text('{"*": "Answer: 2"}')
    path = tmp_path / "pool.yaml"
    rows = [{"alias": "a", "engine": "scripted", "script": "lines.json"}]
    path.write_text(json.dumps({"experts": rows}))
    return path


def count_pools() -> int:
    return sum(thread.name == "expertmix-pool" for thread in threading.enumerate())


def let_go(held: list[ChatExpert | ChatExpertmix]) -> None:
    held.clear()
    gc.collect()


@pytest.mark.parametrize("make", MODELS, ids=["expert", "panel"])
def test_a_pool_that_nobody_holds_is_closed_with_a_warning(file: Path, make: Make) -> None:
    before = count_pools()
    model = make(file)
    model.invoke("hi")
    held = [model.model_copy(update={"temperature": 0.5})]
    del model
    gc.collect()
    assert count_pools() == before + 1  # the copy holds it
    with pytest.warns(ResourceWarning, match="never closed; its pool is closed now: a"):
        let_go(held)
    until = time.monotonic() + 10
    while count_pools() > before and time.monotonic() < until:
        time.sleep(0.01)
    assert count_pools() == before


@pytest.mark.parametrize("make", MODELS, ids=["expert", "panel"])
def test_a_pool_that_was_closed_or_given_goes_without_one(file: Path, make: Make) -> None:
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        model = make(file)
        model.invoke("hi")
        model.close()
        with Pool.from_engines({"a": ScriptedEngine("a", {"*": "Answer: 2"})}) as pool:
            given = ChatExpert(pool=pool, model="a")
            given.invoke("hi")
            del model, given
            gc.collect()
            assert ChatExpert(pool=pool, model="a").invoke("hi").text == "Answer: 2"
    assert not [one for one in warned if one.category is ResourceWarning]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_is_told_that_it_cannot_use_what_is_open(file: Path) -> None:
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORK, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    *refused, text, status = done.stdout.splitlines()
    assert (len(refused), text, status) == (4, "Answer: 2", "status 0"), done.stderr
    assert all("no fork of it can use it" in line for line in refused)
