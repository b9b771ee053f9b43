"""A panel that is put together when it is first asked something."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

from ...agents import Catalog, Pool, Profile
from ...graph import Resources, make_resources
from ...graph.closing import can_close
from ..drawing import Drawing, DrawnPool
from .lazy_pool import Home, LazyPool
from .wishes import keeps_schemas

__all__ = ["LazyPanel"]


@dataclass(frozen=True, kw_only=True, eq=False)
class LazyPanel:
    """A pool and how a panel is made of it, or a panel that is there already."""

    origin: LazyPool | Resources
    """The pool of a panel that is there already stays its owner's to close."""
    settings: Mapping[str, Any]
    """Of `make_resources`."""
    drawing: Drawing
    """How experts draw their answers."""
    home: Home = field(default_factory=Home)
    """Of the pool of a panel that is there already."""
    _made: dict[Pool, Resources] = field(default_factory=dict[Pool, Resources])
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def catalog(self) -> Catalog:
        """Who there is."""
        origin = self.origin
        return origin.pool.catalog if isinstance(origin, Resources) else origin.catalog

    @property
    def speaks(self) -> bool:
        """Whether somebody may be given a caller's tools; nothing is opened to find out."""
        if isinstance(self.origin, Resources):
            return can_close(self.origin)
        return (self.settings["aggregator"] or self.catalog.file.aggregator) is not None

    @property
    def keeps_schemas(self) -> bool:
        """Whether whoever may speak can be given tools and a JSON Schema in one request."""
        if isinstance(self.origin, Resources):
            named = self.origin.aggregator
        else:
            named = self.settings["aggregator"] or self.catalog.file.aggregator
        # The best of all is known with the question only.
        aliases = [named] if named is not None and named in self.catalog else list(self.catalog)
        return all(keeps_schemas(self.catalog[alias], with_tools=True) for alias in aliases)

    @property
    def fingerprint(self) -> str:
        """Tells it from other panels, as far as that can be told: a panel that was given has no other name."""
        profile = self.settings["profile"]
        told = profile.fingerprint if isinstance(profile, Profile) else str(profile)
        given = f"{id(self.origin):x}" if isinstance(self.origin, Resources) else ""
        words = "\0".join([self.catalog.file.model_dump_json(), told, given])
        return hashlib.sha256(words.encode()).hexdigest()[:12]

    def is_like(self, other: LazyPanel) -> bool:
        """Whether the other would be made in the same way."""
        return (
            self.origin is other.origin
            and self.drawing == other.drawing
            and all(other.settings[name] is value for name, value in self.settings.items())
        )

    def open(self) -> Resources:
        """The panel, its pool open. Blocks at the first call: a profile is read.

        Raises:
            InputError: settings, pool and profile do not fit together.
        """
        made = self._make()
        if self.drawing == Drawing():
            return made
        return replace(made, pool=cast("Pool", DrawnPool(made.pool, self.drawing)))

    def _make(self) -> Resources:
        if isinstance(self.origin, Resources):
            self.home.enter()
            self.origin.pool.open()
            return self.origin
        pool = self.origin.open()
        with self._lock:
            # A pool that was closed and is opened again is another one.
            if pool not in self._made:
                self._made.clear()
                self._made[pool] = make_resources(pool, **self.settings)
            return self._made[pool]
