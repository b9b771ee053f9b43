"""A pool that is opened when it is first asked something, and that everything made of one model shares."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from ...agents import Catalog, Pool

__all__ = ["LazyPool"]


class LazyPool:
    """One pool, however many copies, bindings and configured variants of a chat model hold it.

    Args:
        pool: An open pool, which stays its owner's to close; or a catalog or pool file, of which a pool is
            made at the first call.

    Raises:
        InputError: the pool file is missing or says something else than a pool.
    """

    def __init__(self, pool: Pool | Catalog | str | Path) -> None:
        self._given = pool if isinstance(pool, Pool) else None
        self._own: Pool | None = None
        self._lock = threading.Lock()
        if isinstance(pool, Pool | Catalog):
            self.catalog = pool.catalog if isinstance(pool, Pool) else pool
        else:
            self.catalog = Catalog.load(pool)

    @classmethod
    def of(cls, pool: LazyPool | Pool | Catalog | str | Path) -> LazyPool:
        """The pool itself where it is one already, so that it is not opened twice."""
        return pool if isinstance(pool, LazyPool) else cls(pool)

    def open(self) -> Pool:
        """The pool, opened if it was not. No model is loaded before it is needed."""
        if self._given is not None:
            return self._given.open()
        with self._lock:
            if self._own is None:
                self._own = Pool(self.catalog).open()
            return self._own

    def close(self) -> None:
        """Close the pool if it was opened here. Safe to call twice; the next call opens it again."""
        with self._lock:
            own, self._own = self._own, None
        if own is not None:
            own.close()

    def __repr__(self) -> str:
        state = (
            "given" if self._given is not None else "open" if self._own is not None else "closed"
        )
        return f"LazyPool({', '.join(self.catalog)}; {state})"

    def __deepcopy__(self, _: Any) -> LazyPool:
        return self
