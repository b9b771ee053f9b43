"""A panel in a process of its own, which others end: `durable_run.py FOLDER DURABILITY`.

Prints a line when an expert has finished and one when the panel has; asks of `quick` and `slow` are kept in
`FOLDER/asked`. Goes on where an earlier run in the folder ended.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.errors import GraphDrained

from expertmix.agents import Pool
from expertmix.agents.engines import Request
from expertmix.agents.engines.scripted import ScriptedEngine
from expertmix.graph import Resources, create_graph, drain_on_signal
from expertmix.retrieval import Question

FOLDER = Path(sys.argv[1])
DURABILITY: Any = sys.argv[2]
CONFIG: Any = {"configurable": {"thread_id": "1"}}


def answer(name: str) -> ScriptedEngine:
    def say(request: Request) -> str:
        with (FOLDER / "asked").open("a") as file:
            file.write(f"{name} {request.question_id}\n")
        return "Answer: 7"

    return ScriptedEngine(name, say, latency=0.1 if name == "quick" else 1.5)


async def main() -> None:
    made = (Question(id=f"q{i}", text=f"Sum {i}?", kind="number") for i in range(3))
    asked: Any = {"questions": {question.id: question.to_json() for question in made}}
    database = str(FOLDER / "threads.sqlite")
    async with (
        AsyncSqliteSaver.from_conn_string(database) as saver,
        Pool.from_engines({name: answer(name) for name in ("quick", "slow")}) as pool,
    ):
        graph = create_graph(Resources(pool=pool, k=2), checkpointer=saver)
        begun = (await graph.aget_state(CONFIG)).values
        with drain_on_signal() as control:
            try:
                told: AsyncIterator[Any] = graph.astream(
                    None if begun else asked,
                    CONFIG,
                    stream_mode=["custom", "values"],
                    durability=DURABILITY,
                    control=control,
                )
                async for mode, part in told:
                    if mode == "custom" and part["event"] == "expert_finished":
                        print("finished", part["expert"], flush=True)
                    if mode == "values" and part.get("verdicts"):
                        print("verdicts", len(part["verdicts"]), flush=True)
            except GraphDrained as drained:
                print("drained", drained.reason, flush=True)
                sys.exit(143)


asyncio.run(main())
