"""What the machine has: Python, cores, memory, disk and graphics cards."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil

from ...agents.pool.conversion import cache_folder
from .finding import Finding

__all__ = ["find_machine", "memory_limit"]

GIB = 2**30
ENOUGH_MEMORY = 4 * GIB
"""One engine with a 135M model takes 1.5 to 2.3 GiB; converting its weights takes 1."""
ENOUGH_DISK = 2 * GIB
CGROUPS = Path("/sys/fs/cgroup")


def find_machine(*, cache: Path | None = None, cgroups: Path = CGROUPS) -> Iterator[Finding]:
    """Look at the machine.

    Args:
        cache: Where converted weights go; by default where the pool puts them.
        cgroups: The root of the control groups that limit this process.
    """
    yield _python()
    yield _cores()
    yield _memory(cgroups)
    yield _disk(cache or cache_folder())
    yield _graphics()


def memory_limit(cgroups: Path = CGROUPS) -> int | None:
    """The bytes that the control group allows us (version 2, then 1); None without a limit."""
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            text = (cgroups / name).read_text(encoding="ascii").strip()
        except OSError:
            continue
        if text.isdigit() and int(text) < psutil.virtual_memory().total:
            return int(text)
    return None


def _python() -> Finding:
    version = platform.python_version()
    detail = f"{version}, {sys.executable}"
    if (3, 11) <= sys.version_info[:2] <= (3, 13):
        return Finding(name="python", status="ok", detail=detail)
    remedy = "use Python 3.11, 3.12 or 3.13"
    return Finding(name="python", status="broken", detail=detail, remedy=remedy)


def _cores() -> Finding:
    usable = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    detail = f"{usable} of {os.cpu_count()} usable, {platform.machine()}"
    return Finding(name="cores", status="info", detail=detail)


def _memory(cgroups: Path) -> Finding:
    memory = psutil.virtual_memory()
    limit = memory_limit(cgroups)
    available = memory.available if limit is None else min(memory.available, limit)
    detail = f"{available / GIB:.1f} GiB available of {memory.total / GIB:.1f}"
    if limit is not None:
        detail += f", limited to {limit / GIB:.1f} by a control group"
    if available >= ENOUGH_MEMORY:
        return Finding(name="memory", status="ok", detail=detail)
    remedy = "a small model needs about 2 GiB: close other programs, or keep one engine at a time"
    return Finding(name="memory", status="info", detail=detail, remedy=remedy)


def _disk(cache: Path) -> Finding:
    existing = next(folder for folder in (cache, *cache.absolute().parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    detail = f"{free / GIB:.1f} GiB free for converted weights in {cache}"
    if free < ENOUGH_DISK:
        remedy = "make room, or set EXPERTMIX_CACHE to a folder on another disk"
        return Finding(name="disk", status="broken", detail=detail, remedy=remedy)
    if not os.access(existing, os.W_OK):
        remedy = "set EXPERTMIX_CACHE to a folder that you may write to"
        return Finding(
            name="disk", status="broken", detail=f"{detail}: not writable", remedy=remedy
        )
    return Finding(name="disk", status="ok", detail=detail)


def _graphics() -> Finding:
    """The cards that the driver sees; whether torch sees them is another question."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,memory.free", "--format=csv,noheader"]
    if not shutil.which(query[0]):
        return Finding(
            name="graphics", status="info", detail="no NVIDIA driver: models run on the CPU"
        )
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        words = " ".join(str(getattr(error, "stdout", None) or error).split())
        remedy = "run nvidia-smi; the driver and the kernel module must be of one version"
        return Finding(name="graphics", status="broken", detail=words[:200], remedy=remedy)
    cards = [" · ".join(part.strip() for part in line.split(",")) for line in _lines(done.stdout)]
    detail = "; ".join(f"{card} free" for card in cards) or "the driver lists none"
    return Finding(name="graphics", status="info", detail=detail)


def _lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()]
