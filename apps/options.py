"""Options that several commands share, each with its words."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ..agents import Policy

__all__ = [
    "AbstainOption",
    "AdaptiveOption",
    "AggregatorOption",
    "CostOption",
    "JsonOption",
    "KOption",
    "LimitOption",
    "MergingOption",
    "MetricsOption",
    "PictureOption",
    "PolicyOption",
    "PoolOption",
    "ProfileOption",
    "SamplesOption",
    "SeedOption",
    "StoreOption",
]

PoolOption = Annotated[
    Path | None,
    typer.Option(
        "--pool", help="Pool file; default: pool.yaml here, else the built-in laptop pool."
    ),
]
ProfileOption = Annotated[
    Path | None, typer.Option("--profile", help="Folder made by `expertmix profile`.")
]
KOption = Annotated[int | None, typer.Option("-k", "--k", help="Experts per question; default 3.")]
PolicyOption = Annotated[Policy, typer.Option("--policy", help="How experts are recruited.")]
AggregatorOption = Annotated[
    str | None,
    typer.Option("--aggregator", help="Expert that merges drafts; `best`: the profile's."),
]
AdaptiveOption = Annotated[
    float | None,
    typer.Option("--adaptive", help="Mean calls per question: ask more experts only in disputes."),
]
MergingOption = Annotated[
    Literal["posterior", "vote"],
    typer.Option("--merging", help="Weigh answers by what the profile says, or count them."),
]
AbstainOption = Annotated[
    float, typer.Option("--abstain-below", help="Give no answer below this confidence.")
]
CostOption = Annotated[
    float, typer.Option("--cost-weight", help="How much cheap experts are preferred; 0: not.")
]
StoreOption = Annotated[
    Path | None,
    typer.Option(
        "--store",
        help="Answer store to share between runs; default: in the run folder; `off`: none.",
    ),
]
MetricsOption = Annotated[
    Path | None, typer.Option("--metrics", help="Write Prometheus metrics to this file as it runs.")
]
PictureOption = Annotated[
    Path | None, typer.Option("--picture", help="Draw it into this .svg or .html file.")
]
SeedOption = Annotated[int, typer.Option("--seed", help="Of everything that is drawn.")]
SamplesOption = Annotated[int, typer.Option("--samples", min=1, help="Answers per expert.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else.")]
LimitOption = Annotated[int | None, typer.Option("--limit", min=1, help="First N only.")]
