"""The simulated machine, for every test of the pool's loop."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from simulation import Simulate, Simulation

# Under pytest's importlib mode a helper beside the tests has no name by which they could import it.
_spec = importlib.util.spec_from_file_location(
    "simulation", Path(__file__).with_name("simulation.py")
)
assert _spec is not None
assert _spec.loader is not None
sys.modules["simulation"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(sys.modules["simulation"])


@pytest.fixture
def simulate() -> Iterator[Simulate]:
    """Makes simulations, and closes them in the end."""
    made: list[Simulation] = []

    def make(*given: Any, **settings: Any) -> Simulation:
        made.append(sys.modules["simulation"].Simulation(*given, **settings))
        return made[-1]

    yield make
    try:
        for sim in made:
            sim.close()
    finally:
        for sim in made:
            sim.discard()
