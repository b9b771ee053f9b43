"""Makes dense weights into a mixture of experts. Run as a program, in its own process.

    python -m expertmix.agents.pool.split MODEL FOLDER LAYERS EXPERTS TOP_K

Problems are reported as one last line on standard error and exit status 1.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from .convert import hide_torchvision

__all__ = ["main"]


def main(arguments: Sequence[str]) -> int:
    """Split `[model, folder, layers, experts, top_k]`; return the exit status."""
    model, folder = map(Path, arguments[:2])
    layers, experts, top_k = map(int, arguments[2:])
    try:
        hide_torchvision()
        from ..moe.building.build import Build, build_moe

        made = folder / "made"
        build_moe(Build(parent=str(model), layers=layers, experts=experts, top_k=top_k), made)
        for file in made.iterdir():
            file.rename(folder / file.name)
        shutil.rmtree(made)
    except Exception as error:  # the parent shows the reason, whatever it is
        print(f"{type(error).__name__}: {' '.join(str(error).split())[:500]}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
