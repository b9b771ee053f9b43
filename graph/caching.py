"""Keeping an expert's answers in a LangGraph cache, under a key that says what they depend on.

LangGraph's own key hashes the node's input, which knows nothing of the weights that answer. Ours is the
expert's identity (weights, revision, adapter, persona) with its requests word for word and their sampling,
so another pool, another prompt or another seed is another key. A batch with a failure is not kept.

The pool's `AnswerStore` does the same reply by reply; a cache is for those who have one for all their graphs.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from langgraph.cache.base import BaseCache, FullKey, Namespace
from langgraph.types import CachePolicy

from ..retrieval import InputError, Question
from .asking import build_batch
from .state import ExpertBatch, Resources

__all__ = ["CACHING", "WithoutFailures", "find_key"]

Writes = Sequence[tuple[str, Any]]


def find_key(context: Resources, batch: ExpertBatch) -> str:
    """What the batch's answers depend on; blocks, as `Pool.identity`.

    A key of its own, under which nothing will ever be found, where the weights are not there.
    """
    try:
        identity = context.pool.identity(batch["expert"])
    except InputError:
        return uuid.uuid4().hex
    questions = [Question.restore(row) for row in batch["questions"]]
    asked = [
        {**asdict(request), "question": None} for request in build_batch(context, batch, questions)
    ]
    # Where the answers go next is cached with them.
    goes_on = context.adaptive is not None or context.substitute
    content = [identity, asked, [asdict(question) for question in questions], goes_on]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _key_of(batch: ExpertBatch) -> str:
    return batch.get("key") or uuid.uuid4().hex


CACHING = CachePolicy(key_func=_key_of)


class WithoutFailures(BaseCache[Writes]):
    """A cache in which failed answers are not kept: what went wrong may go right the next time.

    Args:
        cache: Where everything else is kept.
    """

    def __init__(self, cache: BaseCache[Writes]) -> None:
        super().__init__(serde=cache.serde)
        self._cache = cache

    def get(self, keys: Sequence[FullKey]) -> dict[FullKey, Writes]:
        """As the cache."""
        return self._cache.get(keys)

    async def aget(self, keys: Sequence[FullKey]) -> dict[FullKey, Writes]:
        """As the cache."""
        return await self._cache.aget(keys)

    def set(self, pairs: Mapping[FullKey, tuple[Writes, int | None]]) -> None:
        """Keep what has no failure in it."""
        if kept := _drop_failures(pairs):
            self._cache.set(kept)

    async def aset(self, pairs: Mapping[FullKey, tuple[Writes, int | None]]) -> None:
        """Keep what has no failure in it."""
        if kept := _drop_failures(pairs):
            await self._cache.aset(kept)

    def clear(self, namespaces: Sequence[Namespace] | None = None) -> None:
        """As the cache."""
        self._cache.clear(namespaces)

    async def aclear(self, namespaces: Sequence[Namespace] | None = None) -> None:
        """As the cache."""
        await self._cache.aclear(namespaces)


def _drop_failures(
    pairs: Mapping[FullKey, tuple[Writes, int | None]],
) -> dict[FullKey, tuple[Writes, int | None]]:
    return {key: (writes, ttl) for key, (writes, ttl) in pairs.items() if not _has_failure(writes)}


def _has_failure(writes: Writes) -> bool:
    return any(
        row["error"] is not None
        for channel, value in writes
        if channel == "answers"
        for rows in value.values()
        for row in rows.values()
    )
