"""Writes a pool file whose experts answer with what real models once answered (engine `replay`).

python examples/recorded_pool.py TABLE [--models FILE] > pool.yaml

TABLE is a folder with outcomes.parquet (`question_id`, `model`, `predicted`, …), FILE names one model a line.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import yaml
from pyarrow import parquet


def main() -> None:
    """Read the table's models and print the pool."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", type=Path)
    parser.add_argument("--models", type=Path)
    arguments = parser.parse_args()
    column = parquet.read_table(arguments.table / "outcomes.parquet", columns=["model"])["model"]
    models = sorted(str(model) for model in column.unique().to_pylist())
    if arguments.models is not None:
        lines = (line.split("#")[0].strip() for line in arguments.models.read_text().splitlines())
        wanted = {line for line in lines if line}
        if unknown := wanted.difference(models):
            sys.exit(f"the table has no model {min(unknown)!r}; it has {', '.join(models)}")
        models = [model for model in models if model in wanted]
    table = arguments.table.resolve()
    experts = [
        {
            "alias": re.sub(r"[^A-Za-z0-9._-]", "-", model)[:64],
            "engine": "replay",
            "table": table.name,
            "model": model,
        }
        for model in models
    ]
    yaml.safe_dump({"root": str(table.parent), "experts": experts}, sys.stdout, sort_keys=False)


if __name__ == "__main__":
    main()
