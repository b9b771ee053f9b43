"""Handing a slice of requests to an engine, and telling what it answered from what it lost."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from ..engines import Engine, Failure, Reply, Request
from .residents import Slice

__all__ = ["serve_slice"]


async def serve_slice(
    engine: Engine, slice_: Slice, hear: Callable[[Reply], None], *, is_mortal: bool
) -> tuple[list[Request], Failure | None]:
    """Have an engine answer a slice.

    Args:
        engine: Started.
        slice_: Of one job; streamed if the job wants that.
        hear: Called once with each reply that counts.
        is_mortal: Whether a reply with a failure of kind `engine` means that the engine is dead. Then
            it does not count: another engine may answer.

    Returns:
        The requests that the engine lost, and why; none and None if it is well.
    """
    open_requests = {request.id: request for request in slice_.requests}
    deaths: list[Failure] = []

    def sort_out(reply: Reply) -> None:
        if reply.request_id not in open_requests:
            return
        if is_mortal and reply.failure is not None and reply.failure.kind == "engine":
            deaths.append(reply.failure)
            return
        del open_requests[reply.request_id]
        hear(reply)

    try:
        if slice_.job.on_chunk is None:
            for reply in await engine.generate(slice_.requests, sort_out):
                sort_out(reply)
        else:
            await _stream(engine, slice_, sort_out)
    except Exception as error:  # an engine of the user's own may raise anything
        message = f"engine {engine.name!r} raised {type(error).__name__}: {error}"
        deaths.append(Failure(kind="engine", message=message, retryable=True))
    lost = list(open_requests.values())
    if not lost:
        return [], None
    silent = Failure(kind="engine", message=f"engine {engine.name!r} gave no reply", retryable=True)
    return lost, deaths[0] if deaths else silent


async def _stream(engine: Engine, slice_: Slice, sort_out: Callable[[Reply], None]) -> None:
    assert slice_.job.on_chunk is not None
    async with contextlib.aclosing(engine.stream(slice_.requests[0])) as chunks:  # pyright: ignore[reportArgumentType]
        async for chunk in chunks:
            if chunk.reply is None or chunk.reply.failure is None:
                slice_.job.on_chunk(chunk)
            if chunk.reply is not None:
                sort_out(chunk.reply)
