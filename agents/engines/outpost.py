"""Our end of a Ray actor that holds engines: placed once, asked for replies, ended once.

See `station.py` for what is inside. An outpost belongs to one event loop and may serve many engines;
whoever made it closes it. Ray has to be connected already (`expertmix.agents.pool.RayHost` does it).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .base import EngineError, Failure
from .reasons import root_reason
from .station import Station

__all__ = ["Outpost", "Place"]

_PATIENCE = 10.0  # seconds that engines may take to end before their actor is killed
_STALE_SECONDS = 1.0
_GONE = ("node has died", "node is dead", "doesn't exist")  # what Ray writes of nodes


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A node, and what an actor takes of it for as long as it lives."""

    node_id: str
    """Ray's own, 56 hexadecimal digits."""
    name: str
    """For messages."""
    cpus: float = 0.0
    gpus: float = 0.0
    """Ray chooses which, and makes only those visible."""


class Outpost:
    """One Ray actor on one node.

    Args:
        place: Where; it never moves elsewhere.
        patience: Seconds that Ray may take to give it what the place says.
    """

    def __init__(self, place: Place, *, patience: float = 60.0) -> None:
        self.place = place
        self.patience = patience
        self.pid: int | None = None
        """Process id of the actor, on its node."""
        self.free_bytes: int | None = None
        """Memory that was free on the node when it was last heard of; None before it was."""
        self.failure: Failure | None = None
        """How the actor was lost; None while it was not."""
        self.is_gone = False
        """Whether the node has gone with it."""
        self._actor: Any = None
        self._lock = asyncio.Lock()
        self._numbers = itertools.count()
        self._asked_at = 0.0

    def enlist(self) -> int:
        """A number for one more engine."""
        return next(self._numbers)

    async def start(self) -> None:
        """Have Ray start the actor, unless it runs.

        Raises:
            EngineError: it has no room for it there, the node is gone, or lacks what we need.
        """
        async with self._lock:
            self._check_present()
            if self._actor is None:
                self._actor = await asyncio.to_thread(self._create)
            if self.pid is None:
                await self._await_place()

    def _create(self) -> Any:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        make: Any = ray.remote  # its annotations know one of the three kinds of strategies
        if not ray.is_initialized():  # Ray would start a cluster of its own accord
            raise EngineError(Failure(kind="load", message="Ray is not connected to a cluster"))
        # Ray would set as many threads as the actor has CPUs; ours are for that many engines.
        threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        actor = make(
            num_cpus=self.place.cpus,
            num_gpus=self.place.gpus,
            max_restarts=0,  # what it held would be gone all the same
            scheduling_strategy=NodeAffinitySchedulingStrategy(self.place.node_id, soft=False),
        )(Station)
        return actor.remote(threads)

    async def _await_place(self) -> None:
        try:
            async with asyncio.timeout(self.patience):
                report = await self.order("greet")
        except TimeoutError:
            self._drop(
                f"{self.place.name} has no room: Ray did not find {self.place.cpus:g} CPUs and "
                f"{self.place.gpus:g} GPUs there within {self.patience:g} s"
            )
            await self._kill()
        else:
            self.pid = report["pid"]
        self._check_present()

    async def order(self, method: str, *arguments: Any) -> Mapping[str, Any]:
        """Have the station do something, and wait until it is done.

        Raises:
            EngineError: the actor is lost.
        """
        from ray.exceptions import RayError

        self._check_present()
        try:
            report = await getattr(self._actor, method).remote(*arguments)
        except RayError as error:
            raise self._lose(error) from None
        return self._note(report)

    async def ask(
        self, number: int, entries: Sequence[Mapping[str, Any]], *, stream: bool = False
    ) -> AsyncGenerator[Mapping[str, Any], None]:
        """What an engine says to requests, as it comes. Closing the iterator aborts them.

        Raises:
            EngineError: the actor is lost; what was said before has arrived.
        """
        import ray
        from ray.exceptions import RayError

        self._check_present()
        method = self._actor.answer.options(num_returns="streaming")
        messages = method.remote(number, entries, stream)
        running = True
        try:
            async for message in messages:
                yield self._note(await message)
            running = False
        except RayError as error:
            running = False
            raise self._lose(error) from None
        finally:
            if running and ray.is_initialized():
                ray.cancel(messages)

    def _check_present(self) -> None:
        import ray

        # A call would connect Ray again, to whatever is there.
        if self._actor is not None and not ray.is_initialized():
            self._drop("Ray was disconnected")
        if self.failure is not None:
            raise EngineError(self.failure)

    def refresh(self) -> None:
        """Have the free memory told anew, if that was long ago; this waits for nothing."""
        now = time.monotonic()
        if self.pid is None or now - self._asked_at < _STALE_SECONDS:
            return
        self._asked_at = now
        with contextlib.suppress(EngineError):
            self._check_present()
            self._actor.greet.remote().future().add_done_callback(self._hear)

    def _hear(self, answer: Any) -> None:
        if answer.exception() is None:
            self._note(answer.result())

    def _note(self, report: Mapping[str, Any] | None) -> Mapping[str, Any]:
        report = report or {}
        self.free_bytes = report.get("free_bytes", self.free_bytes)
        return report

    def _lose(self, error: Exception) -> EngineError:
        """Note that there is no actor any more: its engines are beyond us, whatever became of it."""
        import ray

        self.is_gone = any(sign in str(error) for sign in _GONE)
        failure = self._drop(_explain(error, self.place.name))
        if self._actor is not None and ray.is_initialized():
            ray.kill(self._actor)  # it may only be out of reach, and would keep its GPU
        return EngineError(failure)

    def _drop(self, reason: str) -> Failure:
        if self.failure is None:
            self.failure = Failure(kind="engine", message=reason, retryable=True)
        return self.failure

    async def dismiss(self, number: int) -> None:
        """Close one engine; the actor stays. What is lost is closed already."""
        if self._actor is not None and self.failure is None:
            with contextlib.suppress(EngineError, TimeoutError):
                async with asyncio.timeout(_PATIENCE):
                    await self.order("end", number)

    async def close(self) -> None:
        """Close all engines, then the actor. Safe to call twice."""
        if self._actor is not None and self.failure is None:
            with contextlib.suppress(EngineError, TimeoutError):
                async with asyncio.timeout(_PATIENCE):
                    await self.order("close")
        self._drop(f"the actor on {self.place.name} was closed")
        await self._kill()

    async def _kill(self) -> None:
        import ray

        actor, self._actor = self._actor, None
        if actor is not None and ray.is_initialized():
            await asyncio.to_thread(ray.kill, actor)


def _explain(error: Exception, node: str) -> str:
    """One sentence about what Ray tells on many lines."""
    from ray.exceptions import OutOfMemoryError

    text = str(error)
    cause = getattr(error, "cause", None)
    if isinstance(cause, Exception):  # raised in the actor's own code
        return f"the actor on {node} failed: {root_reason(cause)}"
    if isinstance(error, OutOfMemoryError):
        return f"Ray ended the actor on {node} because the node ran out of memory"
    if any(sign in text for sign in _GONE):
        return f"{node} is gone, or never had what the actor needs"
    if "creation task" in text:  # such as a module that the node lacks
        return f"{node} cannot run the actor: {text.strip().splitlines()[-1].strip()}"
    return f"the process of the actor on {node} ended; often the machine ran out of memory"
