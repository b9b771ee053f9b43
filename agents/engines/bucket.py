"""A token bucket: so much a minute, and not all of it at once.

Our own, because aiolimiter 1.3 serves the smallest amount first, refuses amounts above the bucket's
size and cannot be told afterwards what a request really cost.
"""

from __future__ import annotations

import math

__all__ = ["Bucket"]

BURST_PART = 10  # a tenth of a minute's allowance may go at once


class Bucket:
    """At most so much in any minute, and a tenth of it at once.

    A full bucket and what flows in during a minute are a minute's allowance together; hence a steady
    flow is a tenth below it. All that is kept is the moment at which the bucket will be full again.
    Amounts are whole numbers; moments are those of `loop.time`.

    Args:
        per_minute: The allowance. An amount above a tenth of it may go when the bucket is full, and
            what it lacks delays what comes next: then a minute may have that much more.
    """

    def __init__(self, per_minute: float) -> None:
        if not 0 < per_minute < math.inf:
            raise ValueError(f"a rate must be above 0 and finite, got {per_minute}")
        self._size = max(1.0, per_minute // BURST_PART)
        # The first of a minute's inflow finds the bucket just emptied: hence one more of them.
        self._seconds_each = 60.0 / (per_minute - self._size + 1.0)
        self._full_at = -math.inf

    def ready_at(self, amount: float) -> float:
        """The moment from which an amount may be taken."""
        return self._full_at - max(0.0, self._size - amount) * self._seconds_each

    def take(self, amount: float, now: float) -> None:
        """Take an amount, whether or not it is there."""
        self._full_at = max(self._full_at, now) + amount * self._seconds_each

    def correct(self, difference: float) -> None:
        """Take afterwards what came on top of an amount taken, or give back if it is negative."""
        self._full_at += difference * self._seconds_each
