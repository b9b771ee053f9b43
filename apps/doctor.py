"""The doctor: looks at everything that local inference depends on, and repairs what pip breaks.

Prints nothing; the command line shows what it finds.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence

from ..retrieval import InputError
from .checkup import Finding, find_extras, find_imports, find_machine, find_settings, find_weights
from .checkup.child import COMPANIONS

__all__ = ["diagnose", "removable", "repair", "repair_command"]


def diagnose(*, timeout: float = 180.0, environ: Mapping[str, str] | None = None) -> list[Finding]:
    """Look at the machine, the extras, the heavy imports, the weights and the settings.

    Nothing heavy is imported into this process: torch, transformers and vLLM are imported by child
    processes, two at a time, which takes 10 to 40 seconds on a laptop.

    Args:
        timeout: Seconds that one of those imports may take.
        environ: The environment to judge, and to give the child processes; ours by default.
    """
    return [
        *find_machine(),
        *find_extras(),
        *find_imports(timeout=timeout, environ=environ),
        *find_weights(),
        *find_settings(environ),
    ]


def removable(findings: Iterable[Finding]) -> tuple[str, ...]:
    """Of torchvision, torchaudio and torchcodec, those that are installed and do not load."""
    broken = {finding.name for finding in findings if finding.status == "broken"}
    return tuple(name for name in COMPANIONS if name in broken)


def repair_command(packages: Sequence[str], *, python: str = sys.executable) -> list[str]:
    """The command that removes packages from the environment of `python`."""
    return [python, "-m", "pip", "uninstall", "--yes", *packages]


def repair(packages: Sequence[str], *, python: str = sys.executable) -> str:
    """Remove what a CPU build of torch cannot load, and return what pip said.

    Args:
        packages: As `removable` gives them; nothing else is ever removed.
        python: The interpreter of the environment to repair.

    Raises:
        InputError: another package was named, there is no pip, or pip refused.
    """
    if others := sorted(set(packages) - set(COMPANIONS)):
        raise InputError(
            f"The doctor removes {', '.join(COMPANIONS)} and nothing else; got {', '.join(others)}."
        )
    if not packages:
        return ""
    command = repair_command(packages, python=python)
    if python == sys.executable and importlib.util.find_spec("pip") is None:
        names = " ".join(packages)
        raise InputError(
            f"This environment has no pip; remove them with: uv pip uninstall --python {python} {names}"
        )
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise InputError(f"pip could not remove {', '.join(packages)}: {reason}")
    return done.stdout
