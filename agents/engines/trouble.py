"""What went wrong with one attempt at an address, and whether another may help."""

from __future__ import annotations

from dataclasses import replace

import httpx

from .address import read_retry_after
from .base import Failure
from .openai_wire import WireError, error_text
from .wording import one_line

__all__ = ["Trouble", "address_failure", "read_refusal", "read_wire_error", "unreachable"]

RETRIED = frozenset({408, 409, 425, 429})
PAUSED = frozenset({429, 503})
"""With `Retry-After`, these are about everything at the address, and not about one request."""


class Trouble(Exception):
    """One attempt failed."""

    def __init__(
        self,
        failure: Failure,
        *,
        again: bool = False,
        wait: float | None = None,
        status: int | None = None,
    ) -> None:
        super().__init__(failure.message)
        self.failure = failure
        self.again = again
        """Whether another attempt may help."""
        self.wait = wait
        """Seconds that the server asked us to wait."""
        self._status = status

    @property
    def pauses(self) -> bool:
        """Whether the wait holds for all requests to the address."""
        return self.wait is not None and self._status in PAUSED

    @property
    def limited(self) -> bool:
        """Whether the request only came too early: its attempt says nothing about the server."""
        return self.wait is not None and self._status == 429

    @property
    def spent(self) -> int | None:
        """Tokens that the attempt cost: none if it was turned away; None where nobody knows."""
        turned_away = self._status is not None and (self._status < 500 or self._status == 503)
        return 0 if turned_away else None


def address_failure(address: str, what: str, *, retryable: bool = False) -> Failure:
    """A failure that begins with the address and says what is the matter with it."""
    return Failure(kind="address", message=f"{address} {what}", retryable=retryable)


def read_refusal(address: str, response: httpx.Response, body: str) -> Trouble:
    """What a server reported instead of an answer.

    Args:
        address: For the message.
        response: Any that is no success.
        body: Its text.
    """
    status = response.status_code
    if response.is_redirect:
        target = one_line(response.headers.get("location", "nowhere"))
        what = f"redirects to {target}; give the address that answers itself"
        return Trouble(address_failure(address, what), status=status)
    message, about_context = error_text(body)
    again = status >= 500 or status in RETRIED
    failure = address_failure(address, f"answered {status}: {message}", retryable=again)
    if about_context and not again:
        failure = replace(failure, kind="context")
    wait = read_retry_after(response.headers.get("retry-after")) if again else None
    return Trouble(failure, again=again, wait=wait or None, status=status)


def read_wire_error(address: str, error: WireError) -> Trouble:
    """What a server said that is no answer."""
    failure = address_failure(address, str(error), retryable=not error.context)
    return Trouble(replace(failure, kind="context") if error.context else failure)


def unreachable(address: str, error: httpx.HTTPError) -> Trouble:
    """A connection that could not be made or that broke."""
    reason = one_line(error) or type(error).__name__
    failure = address_failure(address, f"cannot be reached ({reason})", retryable=True)
    return Trouble(failure, again=isinstance(error, httpx.TransportError))
