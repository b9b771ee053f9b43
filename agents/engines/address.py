"""Where a server is, with what key, and when it wants to be asked again."""

from __future__ import annotations

import email.utils
import ipaddress
import math
from datetime import UTC, datetime

import httpx

from ...retrieval import InputError

__all__ = ["check_address", "check_key", "is_loopback", "read_retry_after"]


def check_address(address: str) -> httpx.URL:
    """Parse an address, without its final slash.

    Raises:
        InputError: it is no http or https address, or it holds more than a host, a port and a path.
    """
    try:
        url = httpx.URL(address.strip().rstrip("/"))
    except httpx.InvalidURL as error:
        raise InputError(f"the address cannot be read ({error}); give https://HOST/v1") from None
    if url.userinfo:  # first of all: no other message may repeat a password
        raise InputError(f"the address of {url.host} holds a user or password; give an API key")
    if url.scheme not in ("http", "https") or not url.host:
        raise InputError(f'"{address}" is no http or https address; give https://HOST/v1')
    if url.query or url.fragment:
        raise InputError(f'the address "{address}" must end with its path; give https://HOST/v1')
    return url


def check_key(key: str | None) -> str | None:
    """The key without white space around it; None for an empty one.

    Raises:
        InputError: it holds what no HTTP header can carry. The message does not repeat it.
    """
    key = (key or "").strip()
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise InputError("the API key holds spaces, control or non-ASCII characters; check it")
    return key or None


def is_loopback(host: str) -> bool:
    """Whether a host is this machine itself."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def read_retry_after(value: str | None) -> float | None:
    """Seconds that a `Retry-After` header asks for, as a number or as a date; None if it does not."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            date = email.utils.parsedate_to_datetime(value)
        except ValueError:
            return None
        date = date if date.tzinfo else date.replace(tzinfo=UTC)
        seconds = (date - datetime.now(UTC)).total_seconds()
    return max(0.0, seconds) if math.isfinite(seconds) else None
