"""What every test may need: converted weights are made once and shared by all that run them."""

from __future__ import annotations

import gc
import os

import pytest
from platformdirs import user_cache_dir

# Before any test module asks: one thread is faster than two on shared cores, and no test goes online.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("EXPERTMIX_CACHE", user_cache_dir("expertmix"))


@pytest.fixture(scope="module", autouse=True)
def _light_collections() -> None:  # pyright: ignore[reportUnusedFunction]
    """What thousands of tests before have left is not walked over again: that stops all threads for seconds."""
    gc.collect()
    gc.freeze()
