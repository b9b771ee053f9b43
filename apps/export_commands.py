"""The command that hands a run to others: `export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..retrieval import InputError
from .console import print_json, show
from .harness.router_arena import Price, Submission, read_prompts, read_run
from .options import JsonOption, LimitOption
from .tables import clean_text

__all__ = ["export"]


def export(
    run: Annotated[Path, typer.Argument(help="Run folder of `solve`.")],
    questions: Annotated[
        Path, typer.Argument(help="Its questions, or RouterArena's router_data.json.")
    ],
    out: Annotated[
        Path, typer.Option("--out", help="Folder for the files; laid out like RouterArena.")
    ] = Path("runs/router_arena"),
    router: Annotated[str, typer.Option("--router", help="The router's name.")] = "expertmix",
    robustness: Annotated[
        bool, typer.Option("--robustness", help="The questions are the robustness split.")
    ] = False,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", help="ALIAS=NAME: an expert's name at RouterArena."),
    ] = None,
    price: Annotated[
        list[str] | None,
        typer.Option("--price", help="ALIAS=IN/OUT: US dollars for a million tokens."),
    ] = None,
    merged_by: Annotated[
        str | None, typer.Option("--merged-by", help="Expert that merged drafts: it costs, too.")
    ] = None,
    limit: LimitOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a run as a submission to RouterArena."""
    asked = read_prompts(questions, limit=limit)
    submission = Submission(
        router=router,
        solutions=read_run(run, asked),
        names=dict(_split(entry, "--model") for entry in model or []),
        prices=dict(_read_price(entry) for entry in price or []),
        aggregator=merged_by,
    )
    files = submission.write(out, robustness=robustness)
    entries = submission.predictions()
    costs = [entry["cost"] for entry in entries]
    lacking = costs.count(None)
    failed = sum(not entry["generated_result"]["success"] for entry in entries)
    usd = None if lacking else sum(costs)
    if as_json:
        told = {"queries": len(entries), "failed": failed, "without_cost": lacking, "usd": usd}
        print_json({"files": [str(path) for path in files], **told})
        return
    cost = (
        f"{lacking} have no cost: give --price for every expert (and --merged-by)"
        if usd is None
        else f"{usd:.6f} USD together"
    )
    show(
        f"{len(entries)} queries, {failed} of them failed; {cost}.",
        *(clean_text(f"wrote {path}", 500) for path in files),
    )


def _split(entry: str, option: str) -> tuple[str, str]:
    alias, separator, value = entry.partition("=")
    if not (alias and separator and value):
        raise InputError(f'{option} takes ALIAS=VALUE, got "{entry}"')
    return alias, value


def _read_price(entry: str) -> tuple[str, Price]:
    alias, text = _split(entry, "--price")
    try:
        dollars_in, dollars_out = (float(part) for part in text.split("/"))
    except ValueError:
        raise InputError(
            f'--price takes ALIAS=IN/OUT, as in small=0.05/0.1, got "{entry}"'
        ) from None
    if not (0 <= dollars_in < float("inf") and 0 <= dollars_out < float("inf")):
        raise InputError(f'a price is a number of US dollars and not negative, got "{entry}"')
    return alias, Price(input=dollars_in, output=dollars_out)
