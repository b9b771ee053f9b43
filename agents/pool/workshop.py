"""What is done to engines: start them, swap their weights, put them to sleep, and check the result."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Awaitable, Callable
from typing import Literal, cast

import psutil

from ...retrieval import InputError
from ..engines import Engine, EngineError, Failure, Load, Sleeper, Swapper
from .assembly import Prepared, engine_version, kv_cache_of
from .devices import Device
from .host import Host
from .measurements import Measurement, Measurements, compare_probes

__all__ = ["Workshop", "close_quietly"]

MEMORY_TROUBLE = re.compile(r"\bmemory\b|\bSIGKILL\b|\boom\b|cache blocks", re.IGNORECASE)
STARTUP_SEEN = 0.5
"""Seconds; less than that is no start-up, but a process that was there already."""
LEAST_KV_CACHE = 64 << 20
FALLBACK_KV_CACHE = 256 << 20
"""Bytes for a second attempt where the first left the size to vLLM."""


class Workshop:
    """Every way to get weights onto a device ends here, in a probe that is compared with a fresh load's.

    Args:
        host: Builds the engines.
        measurements: What earlier loads took and gave.
        warn: Called with a sentence about something that nobody has to act on now.
    """

    def __init__(
        self, host: Host, measurements: Measurements, warn: Callable[[str, str], None]
    ) -> None:
        self._host = host
        self._measurements = measurements
        self._warn = warn
        self._is_warm = False

    def find_measurement(self, prepared: Prepared) -> Measurement | None:
        """What the last fresh load of these weights took."""
        key = prepared.measured_as
        return None if key is None else self._measurements.find(key)

    def predict_startup(self) -> float:
        """Seconds that pass before the first load, as far as they are known: vLLM is imported once."""
        if self._is_warm:
            return 0.0
        known = self._measurements.find(f"startup-{_clean(engine_version())}")
        return 0.0 if known is None else known.seconds

    async def start(self, prepared: Prepared, device: Device | None) -> tuple[Engine, Load]:
        """Load weights into a new engine; where memory did not suffice, once more with half the cache.

        Raises:
            EngineError: it cannot be loaded, in one sentence.
        """
        try:
            return await self._start(prepared, device, None)
        except EngineError as error:
            less = _less_cache(prepared)
            is_short = MEMORY_TROUBLE.search(error.failure.message) is not None
            if device is None or not (is_short or error.failure.retryable):
                raise  # an address has retries of its own
            how = "" if less is None else f" with {less >> 20} MiB for keys and values"
            self._warn(prepared.group.name, f"{error.failure.message}; trying once more{how}")
        return await self._start(prepared, device, less)

    async def _start(
        self, prepared: Prepared, device: Device | None, kv_cache_bytes: int | None
    ) -> tuple[Engine, Load]:
        try:
            engine = self._host.build(prepared, device, kv_cache_bytes=kv_cache_bytes)
        except InputError as error:
            raise EngineError(Failure(kind="load", message=str(error))) from None
        try:
            load = await engine.start()
            await self._check_fresh(prepared, load)
        except BaseException:
            await close_quietly(engine)  # half an engine still holds memory
            raise
        return engine, load

    async def _check_fresh(self, prepared: Prepared, load: Load) -> None:
        if prepared.measured_as is None:
            return
        trouble = compare_probes(load.probe, (), dtype=None)
        if trouble:
            message = f"{prepared.group.name} was loaded, but {trouble}"
            raise EngineError(Failure(kind="load", message=message))
        before = self._measurements.find(prepared.measured_as)
        if before is not None and before.probe:
            changed = compare_probes(load.probe, before.probe, dtype=_dtype(prepared))
            if changed:
                self._warn(prepared.group.name, f"loaded afresh as before, but {changed}")
        keep = self._measurements.keep
        await asyncio.to_thread(keep, prepared.measured_as, Measurement.of_load(load))
        if load.startup_seconds > STARTUP_SEEN:
            startup = Measurement(seconds=load.startup_seconds, memory_bytes=0)
            await asyncio.to_thread(keep, f"startup-{_clean(engine_version())}", startup)
        self._is_warm = True

    async def swap(self, engine: Engine, prepared: Prepared) -> Load:
        """Replace an engine's weights in place.

        Raises:
            EngineError: it did not work or gave other weights; the engine is closed.
        """
        assert prepared.weights is not None or isinstance(engine, Swapper)
        model = "" if prepared.weights is None else str(prepared.weights.model)
        name = prepared.group.name
        return await self._change(engine, prepared, cast("Swapper", engine).swap(model, name))

    async def wake(self, engine: Engine, prepared: Prepared) -> Load:
        """Wake an engine.

        Raises:
            EngineError: it did not work or gave other weights; the engine is closed.
        """
        return await self._change(engine, prepared, cast("Sleeper", engine).wake())

    async def _change(self, engine: Engine, prepared: Prepared, change: Awaitable[Load]) -> Load:
        try:
            load = await change
            known = self.find_measurement(prepared)
            expected = () if known is None else known.probe
            trouble = compare_probes(load.probe, expected, dtype=_dtype(prepared))
            if trouble:
                message = f"{prepared.group.name} was put in place of other weights, but {trouble}"
                raise EngineError(Failure(kind="load", message=message, retryable=True))
        except BaseException:
            await close_quietly(engine)
            raise
        return load

    async def sleep(self, engine: Engine, prepared: Prepared) -> None:
        """Put an engine to sleep: with its weights in main memory where that has room for them.

        Raises:
            EngineError: it did not work; the engine is closed.
        """
        size = 0 if prepared.weights is None else prepared.weights.bytes
        level: Literal[1, 2] = 1 if psutil.virtual_memory().available > 2 * size else 2
        try:
            await cast("Sleeper", engine).sleep(level)
        except BaseException:
            await close_quietly(engine)
            raise


async def close_quietly(engine: Engine) -> None:
    """End an engine to its end, even if whoever asked for it has gone."""
    with contextlib.suppress(Exception):  # one that cannot even end must not cost the others
        await asyncio.shield(engine.close())


def _less_cache(prepared: Prepared) -> int | None:
    """Half of the memory for keys and values; None for an engine that has no such setting."""
    if prepared.group.specs[0].engine != "vllm":
        return None
    return max(LEAST_KV_CACHE, (kv_cache_of(prepared.group) or FALLBACK_KV_CACHE) // 2)


def _clean(name: str) -> str:
    return re.sub(r"[^\w.-]", "-", name)


def _dtype(prepared: Prepared) -> str | None:
    stated = getattr(prepared.group.specs[0], "dtype", "auto")
    if stated != "auto" or prepared.weights is None:
        return stated
    return prepared.weights.dtype
