"""The simulated machine, for every test of the pool's loop."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

# Under pytest's importlib mode a helper beside the tests has no name by which they could import it.
_spec = importlib.util.spec_from_file_location(
    "simulation", Path(__file__).with_name("simulation.py")
)
assert _spec is not None
assert _spec.loader is not None
sys.modules["simulation"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(sys.modules["simulation"])
