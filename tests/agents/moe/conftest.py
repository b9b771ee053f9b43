"""Helpers of the tests of `agents/moe`: tiny models of every family, a tokenizer, what a family must do."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

HELPERS = ("families", "wording", "conformance")
"""In the order in which they need each other."""

# Under pytest's importlib mode a helper beside the tests has no name by which they could import it.
# Without torch and transformers the tests that need them are skipped, and nothing is there to load.
if importlib.util.find_spec("torch") and importlib.util.find_spec("transformers"):
    for name in HELPERS:
        path = Path(__file__).with_name(f"{name}.py")
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
