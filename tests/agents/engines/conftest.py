"""The fault-injecting server, for every test of an engine that asks an address."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

# Under pytest's importlib mode a helper beside the tests has no name by which they could import it.
_spec = importlib.util.spec_from_file_location(
    "fault_server", Path(__file__).with_name("fault_server.py")
)
assert _spec is not None
assert _spec.loader is not None
sys.modules["fault_server"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(sys.modules["fault_server"])

from fault_server import FaultServer  # noqa: E402


@pytest_asyncio.fixture
async def server() -> AsyncIterator[FaultServer]:
    """A running fault server."""
    server = FaultServer()
    await server.start()
    yield server
    await server.stop()
