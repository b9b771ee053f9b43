"""A pool that is opened when it is first asked something, and that everything made of one model shares."""

from __future__ import annotations

import contextlib
import os
import threading
import warnings
import weakref
from pathlib import Path
from typing import Any

from ...agents import Catalog, Pool
from ...retrieval import InputError

__all__ = ["Home", "LazyPool"]


class Home:
    """The process in which a pool is used. Its threads do not come along into a fork, where it would wait for ever."""

    def __init__(self) -> None:
        self._process: int | None = None

    @property
    def is_left(self) -> bool:
        """Whether this is another process."""
        return self._process not in (None, os.getpid())

    def enter(self) -> None:
        """From now on it is this one.

        Raises:
            InputError: it is another one already.
        """
        if self.is_left:
            raise InputError(
                f"this model's pool was opened in process {self._process}, and no fork of it can use it: make the model "
                f'in process {os.getpid()} itself, or start processes with the method "spawn"'
            )
        self._process = os.getpid()


class LazyPool:
    """One pool, however many copies, bindings and configured variants of a chat model hold it.

    A pool that was opened here and never closed is closed once nobody holds it any more, with a
    `ResourceWarning`.

    Args:
        pool: An open pool, which stays its owner's to close; or a catalog or pool file, of which a pool is
            made at the first call.

    Raises:
        InputError: the pool file is missing or says something else than a pool.
    """

    def __init__(self, pool: Pool | Catalog | str | Path) -> None:
        self._given = pool if isinstance(pool, Pool) else None
        self._own: Pool | None = None
        self._abandon: weakref.finalize[[Pool, Home], LazyPool] | None = None
        self._home = Home()
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
        """The pool, opened if it was not. No model is loaded before it is needed.

        Raises:
            InputError: it was opened in another process, of which this is a fork.
        """
        if self._given is not None:
            self._home.enter()
            return self._given.open()
        with self._lock:
            self._home.enter()
            if self._own is None:
                self._own = Pool(self.catalog).open()
                self._abandon = weakref.finalize(self, _close_abandoned, self._own, self._home)
                # At the end of the program its thread ends with it, as it always did.
                self._abandon.atexit = False
            return self._own

    def close(self) -> None:
        """Close the pool if it was opened here. Safe to call twice; the next call opens it again.

        In a fork of the process that opened it, it is only forgotten.
        """
        if self._given is not None:
            return
        with self._lock:
            own, self._own = self._own, None
            home, self._home = self._home, Home()
            if self._abandon is not None:
                self._abandon.detach()
        if own is not None and not home.is_left:
            own.close()

    def __repr__(self) -> str:
        state = (
            "given" if self._given is not None else "open" if self._own is not None else "closed"
        )
        return f"LazyPool({', '.join(self.catalog)}; {state})"

    def __deepcopy__(self, _: Any) -> LazyPool:
        return self


def _close_abandoned(pool: Pool, home: Home) -> None:
    if home.is_left:
        return
    # Garbage is collected in whichever thread it is, also in the pool's own: closing must not hold it up.
    with contextlib.suppress(RuntimeError):  # the program is ending, and no thread can be started
        threading.Thread(target=pool.close, name="expertmix-close", daemon=True).start()
    names = ", ".join(pool.catalog)
    warnings.warn(
        f"a chat model was never closed; its pool is closed now: {names}",
        ResourceWarning,
        stacklevel=2,
    )
