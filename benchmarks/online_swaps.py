"""Fewer swaps online, and nobody waits past the bound.

    python benchmarks/online_swaps.py [--json] [--quick]

Real weights through vLLM on the CPU, room for one model at a time: 64 single questions (16 with `--quick`) of an
application arrive at random moments, each answered by three of six experts on three distinct weights. The same trace
is served in two ways, with the same engine, the same swaps in place (a quarter of a second; a restart would
make the second way look ten times worse) and the same prompts:

* ours: the pool in online mode (`patience` 5 s), 64 concurrent runs of the graph;
* first come, first served, as llama-swap's default: a request for another model than the loaded one waits until
  what is running has finished, then the model is swapped; requests for the loaded model that stand next to each
  other in the line run together.

Keys: `swaps_ratio` (first come's swaps ÷ ours), `p95_ratio` (95th percentile of the time from a question's arrival to
its third answer, ours ÷ first come's), `max_wait_ratio` (the longest time for which a model had requests and did
not work, ÷ the bound that `agents/pool/turns.py` states), `swaps`, `swaps_first_come`, `p95_seconds`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from pool_overhead import make_catalog, make_questions, warm_up

from expertmix.agents import Pool, build_requests
from expertmix.agents.engines import Request
from expertmix.agents.pool import group_experts
from expertmix.agents.pool.local_host import LocalHost
from expertmix.graph import make_resources, recruit_first, run_batch
from expertmix.retrieval import Question

PATIENCE = 5.0
MIN_RESIDENCY = 1.0
SETTINGS: dict[str, Any] = {"max_resident": 1, "parallel": 1, "min_residency": MIN_RESIDENCY}


class Arrival(NamedTuple):
    """A question of the trace, and when it comes (seconds)."""

    at: float
    question: Question


class Served(NamedTuple):
    """What one way of serving came to."""

    latencies: list[float]
    swaps: int
    longest_wait: float = 0.0
    bound: float = math.inf


def make_trace(number: int, seed: int = 0) -> list[Arrival]:
    """Questions at exponential distances, half a second on average."""
    chance = random.Random(seed)
    at, trace = 0.0, []
    for question in make_questions(number):
        at += chance.expovariate(2.0)
        trace.append(Arrival(at, question))
    return trace


async def serve_by_pool(trace: Sequence[Arrival]) -> Served:
    """64 concurrent runs of the graph on one pool."""
    latencies: list[float] = []
    async with Pool(make_catalog(**SETTINGS), patience=PATIENCE) as pool:
        resources = make_resources(pool, k=3)
        await run_batch([Question(id="first", text="Hello?")], resources)  # vLLM is imported
        loads = len(pool.ledger.loads)
        begun = time.perf_counter()

        async def ask(arrival: Arrival) -> None:
            await asyncio.sleep(begun + arrival.at - time.perf_counter())
            await run_batch([arrival.question], resources)
            latencies.append(time.perf_counter() - begun - arrival.at)

        await asyncio.gather(*map(ask, trace))
        swaps = len(pool.ledger.loads) - loads
        return Served(latencies, swaps, *_find_waits(pool))


def _find_waits(pool: Pool) -> tuple[float, float]:
    """The longest time for which weights had requests and did not work, and the bound on it."""
    spans = pool.timeline.spans
    longest = 0.0
    for weights, wanted in pool.timeline.wanted.items():
        worked = [(s.start, s.end) for s in spans if s.weights == weights and s.kind == "generate"]
        for start, end in wanted:
            edges = [start, *(t for a, b in worked if b > start and a < end for t in (a, b)), end]
            gaps = zip(edges[::2], edges[1::2], strict=True)
            longest = max([longest, *(b - a for a, b in gaps)])
    load = max(span.seconds for span in spans if span.kind == "load")
    slice_ = max(span.seconds for span in spans if span.kind == "generate")
    return longest, PATIENCE + 3 * (MIN_RESIDENCY + load + slice_)


async def serve_in_order(trace: Sequence[Arrival]) -> Served:
    """First come, first served, on one engine of ours."""
    catalog = make_catalog(**SETTINGS)
    host = LocalHost(catalog)
    groups = {alias: group for group in group_experts(catalog) for alias in group.aliases}
    chosen = recruit_first(
        make_resources(Pool(catalog), k=3),
        [a.question for a in trace],
        {a.question.id: {} for a in trace},
    )
    folders = {key: host.prepare(group) for key, group in groups.items()}
    first = next(iter(groups.values()))
    engine: Any = host.build(host.prepare(first), host.devices[0])
    await engine.start()
    line: asyncio.Queue[tuple[str, Request, asyncio.Future[None]]] = asyncio.Queue()
    latencies: list[float] = []
    begun = time.perf_counter()

    async def ask(arrival: Arrival) -> None:
        await asyncio.sleep(begun + arrival.at - time.perf_counter())
        waits: list[asyncio.Future[None]] = []
        for recruited in chosen[arrival.question.id]:
            spec = catalog[recruited.expert]
            [request] = build_requests([arrival.question], sampling=spec.sampling.to_sampling())
            done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            waits.append(done)
            line.put_nowait((recruited.expert, request, done))
        await asyncio.gather(*waits)
        latencies.append(time.perf_counter() - begun - arrival.at)

    async def run_one(request: Request, done: asyncio.Future[None]) -> None:
        await engine.generate([request])
        done.set_result(None)

    asking = [asyncio.create_task(ask(arrival)) for arrival in trace]
    loaded, swaps, running = first.key, 0, set[asyncio.Task[None]]()
    for _ in range(sum(map(len, chosen.values()))):
        expert, request, done = await line.get()
        if groups[expert].key != loaded:
            if running:
                await asyncio.wait(running)
            weights = folders[expert].weights
            assert weights is not None
            await engine.swap(str(weights.model), expert)
            loaded, swaps = groups[expert].key, swaps + 1
        task = asyncio.create_task(run_one(request, done))
        running.add(task)
        task.add_done_callback(running.discard)
    await asyncio.gather(*asking)
    await engine.close()
    await host.close()
    return Served(latencies, swaps)


def find_p95(latencies: Sequence[float]) -> float:
    """The 95th percentile."""
    return sorted(latencies)[math.ceil(0.95 * len(latencies)) - 1]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object as the last line"
    )
    parser.add_argument("--quick", action="store_true", help="16 questions")
    arguments = parser.parse_args()
    trace = make_trace(16 if arguments.quick else 64)
    asyncio.run(warm_up(make_catalog(swap_in_place=False, **SETTINGS)))
    ours = asyncio.run(serve_by_pool(trace))
    theirs = asyncio.run(serve_in_order(trace))
    figures = {
        "swaps_ratio": round(theirs.swaps / max(1, ours.swaps), 2),
        "p95_ratio": round(find_p95(ours.latencies) / find_p95(theirs.latencies), 3),
        "max_wait_ratio": round(ours.longest_wait / ours.bound, 3),
        "swaps": ours.swaps,
        "swaps_first_come": theirs.swaps,
        "p95_seconds": round(find_p95(ours.latencies), 2),
        "questions": len(trace),
    }
    if arguments.json:
        print(json.dumps(figures))
        return
    print(
        f"{len(trace)} questions in {trace[-1].at:.0f} s, three experts each, room for one of 3 models"
    )
    for name, served in {"ours": ours, "first come": theirs}.items():
        middle = sorted(served.latencies)[len(served.latencies) // 2]
        print(
            f"{name:>11}: {served.swaps:4d} swaps, median {middle:6.1f} s, "
            f"95th percentile {find_p95(served.latencies):6.1f} s"
        )
    print(
        f"longest wait of a model with requests: {ours.longest_wait:.1f} s, bound {ours.bound:.1f} s"
    )


if __name__ == "__main__":
    main()
