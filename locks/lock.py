"""Resolve `pyproject.toml` into `locks/cpu.txt`: exact pins for Linux and every Python we support.

Run by `make lock` with the path of uv; further arguments go to uv (`--upgrade`, `--upgrade-package
NAME`). Pins that are in the file already stay where they still fit. uv does not read pip's settings:
indexes come from `UV_FIND_LINKS`, `UV_EXTRA_INDEX_URL`, and `UV_TORCH_BACKEND=cpu` for PyTorch's own.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

__all__ = ["main", "pins"]

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "locks" / "cpu.txt"
EXTRAS = ("cpu", "serve", "viz", "eval", "dev")
PYTHONS = ("3.11.0", "3.11.14", "3.12.12", "3.13.9")
MACHINES = ("x86_64", "aarch64")
# The wheels of one release may differ in what they ask for, and uv reads only one of them.
UNSEEN = ("intel-cmplr-lib-ur==2024.2.1; platform_machine == 'x86_64'",)
HEADER = """\
# Written by `make lock`; install with `pip install --no-deps -r`. Why without dependencies, and what
# is missing here on purpose: locks/left_out.txt
"""


def main(uv: str, *options: str) -> None:
    """Write the lock."""
    command = [uv, "pip", "compile", "pyproject.toml", "--universal", "--python-version", "3.11"]
    command += ["--override", "locks/left_out.txt", "--output-file", str(LOCK)]
    command += ["--no-annotate", "--no-header", "--quiet", *options]
    command += [word for extra in EXTRAS for word in ("--extra", extra)]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    lines = pins([*LOCK.read_text().splitlines(), *UNSEEN])
    LOCK.write_text(HEADER + "".join(f"{line}\n" for line in lines))


def pins(lines: Iterable[str]) -> Iterator[str]:
    """Sorted requirements that hold on some machine of ours, without markers that always hold."""
    requirements = (Requirement(line) for line in lines if line and not line.startswith("#"))
    for requirement in sorted(requirements, key=lambda r: (canonicalize_name(r.name), str(r))):
        marker = requirement.marker
        holds = [marker is None or marker.evaluate(machine) for machine in _machines()]
        if all(holds):
            requirement.marker = None
        if any(holds):
            yield str(requirement)


def _machines() -> Iterator[dict[str, str]]:
    for python, machine in product(PYTHONS, MACHINES):
        yield {
            "implementation_name": "cpython",
            "platform_python_implementation": "CPython",
            "os_name": "posix",
            "sys_platform": "linux",
            "platform_system": "Linux",
            "platform_machine": machine,
            "python_version": python.rpartition(".")[0],
            "python_full_version": python,
        }


if __name__ == "__main__":
    main(*sys.argv[1:])
