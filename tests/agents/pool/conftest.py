"""The simulated machine, for every test of the pool's loop."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from simulation import Simulate, Simulation


@pytest.fixture
def simulate() -> Iterator[Simulate]:
    """Makes simulations, and closes them in the end."""
    made: list[Simulation] = []

    def make(*given: Any, **settings: Any) -> Simulation:
        made.append(Simulation(*given, **settings))
        return made[-1]

    yield make
    try:
        for sim in made:
            sim.close()
    finally:
        for sim in made:
            sim.discard()
