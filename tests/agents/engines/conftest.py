"""The fault-injecting server, for every test of an engine that asks an address."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio
from fault_server import FaultServer


@pytest_asyncio.fixture
async def server() -> AsyncIterator[FaultServer]:
    """A running fault server."""
    server = FaultServer()
    await server.start()
    yield server
    await server.stop()
