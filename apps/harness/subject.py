"""What a harness examines: one expert of a pool, or the panel of all of them."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from ...agents import AnswerStore, Catalog, Pool
from ...agents.engines import Reply, Request
from ...graph import Resources, Solution, solve_many
from ...retrieval import InputError, Question
from ..interruption import run_interruptibly
from ..session import PanelSettings

__all__ = ["STAGE", "Subject"]

T = TypeVar("T")
STAGE = "harness"
"""What the ledger counts a harness's direct questions to an expert under."""


class Subject:
    """One expert of a pool, or its panel, with everything checked before the first question.

    Args:
        pool: A pool file, or a pool, which stays open and belongs to the caller.
        expert: An alias; None for the panel.
        store: File of an answer store, so that a second run asks nothing twice. For a pool file.
        patience: As the pool's; infinite where everything is asked at once.
        settings: Names and values of `PanelSettings`, for panels.

    Raises:
        InputError: a pool, expert, profile or setting that does not exist or does not fit.
    """

    def __init__(
        self,
        pool: Pool | str | Path,
        *,
        expert: str | None = None,
        store: str | Path | None = None,
        patience: float | None = math.inf,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.expert = expert
        self.is_ours = not isinstance(pool, Pool)
        if isinstance(pool, Pool):
            if store is not None:
                raise InputError("a pool that is given has its own answer store: leave store out")
            self.pool = pool
        else:
            kept = None if store is None else AnswerStore(store)
            self.pool = Pool(Catalog.load(pool), store=kept, patience=patience)
        if expert is not None:
            _ = self.pool.catalog[expert]
        self._settings = _read_settings(settings or {}, expert)
        self.pool.check(None if expert is None else [expert])
        self._resources: Resources | None = None
        if expert is None:
            self._resources = self._settings.resources(self.pool)

    def __str__(self) -> str:
        return "the panel" if self.expert is None else f'expert "{self.expert}"'

    async def ask(
        self, requests: Sequence[Request], on_reply: Callable[[Reply], None] | None = None
    ) -> list[Reply]:
        """Ask the expert many things in one call. The pool must be open."""
        assert self.expert is not None
        return await self.pool.generate(self.expert, requests, stage=STAGE, on_reply=on_reply)

    async def solve(self, questions: Sequence[Question]) -> list[Solution]:
        """Have the panel answer questions, as `expertmix solve` would. The pool must be open."""
        assert self._resources is not None
        windows = solve_many(questions, self._resources)
        return [solution async for window in windows for solution in window]

    def run(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do something with the open pool from plain code, in scripts and in notebooks alike.

        Our own pool is closed afterwards, since harnesses never say that they are done with a model;
        it is opened again when the next kind of request comes, with the same ledger.
        """

        async def start() -> T:
            return await work()

        self.pool.open()
        try:
            try:
                asyncio.get_running_loop()
            except RuntimeError:
                return run_interruptibly(start(), self.pool)
            with ThreadPoolExecutor(1, "expertmix-harness") as thread:
                return thread.submit(asyncio.run, start()).result()
        finally:
            if self.is_ours:
                self.pool.close()

    def to_json(self) -> dict[str, Any]:
        """Whom a harness examined and what that cost, for its results."""
        told: dict[str, Any] = {"ledger": self.pool.ledger.to_json()}
        if self.expert is not None:
            told |= {"expert": self.expert, "identity": self.pool.identity(self.expert)}
        else:
            told |= {"panel": self._settings.to_json(self.pool)}
        return told


def _read_settings(settings: Mapping[str, Any], expert: str | None) -> PanelSettings:
    known = [field.name for field in fields(PanelSettings)]
    for name in settings:
        if name not in known:
            raise InputError(f'there is no setting "{name}"; a panel has {", ".join(known)}')
    given = {name: value for name, value in settings.items() if value is not None}
    if expert is not None and given:
        raise InputError(
            f"{', '.join(given)} can be set for a panel only, and you asked for the expert "
            f'"{expert}"; leave out one or the other'
        )
    if "profile" in given:
        given["profile"] = Path(given["profile"])
    return PanelSettings(**given)
