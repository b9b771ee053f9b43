"""How a door wants answers to be drawn, whatever each expert's own settings say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..agents.engines import Reply, Request, Sampling

if TYPE_CHECKING:
    from ..agents import Pool

__all__ = ["Drawing", "DrawnPool"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """How a request wants answers to be drawn; None leaves it to each expert's own settings."""

    temperature: float | None = None
    top_p: float | None = None
    most_tokens: int | None = None

    def apply(self, sampling: Sampling) -> Sampling:
        """An expert's sampling as the request wants it; `most_tokens` only ever lowers its bound."""
        limit = sampling.max_tokens if self.most_tokens is None else self.most_tokens
        return replace(
            sampling,
            temperature=sampling.temperature if self.temperature is None else self.temperature,
            top_p=sampling.top_p if self.top_p is None else self.top_p,
            max_tokens=min(sampling.max_tokens, limit),
        )


class DrawnPool:
    """Passes calls on to a pool, drawn in one way. Everything else is the pool's own."""

    def __init__(self, pool: Pool, drawing: Drawing) -> None:
        self._pool = pool
        self._drawing = drawing

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)

    async def generate(
        self,
        alias: str,
        requests: Sequence[Request],
        *,
        stage: str = "reason",
        on_reply: Callable[[Reply], None] | None = None,
    ) -> list[Reply]:
        """As `Pool.generate`."""
        asked = [replace(r, sampling=self._drawing.apply(r.sampling)) for r in requests]
        return await self._pool.generate(alias, asked, stage=stage, on_reply=on_reply)
