"""The command line: every command by its name, and what ends it."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from ..agents import Catalog
from ..agents.pool import PoolFile
from ..graph import describe_events
from ..retrieval import InputError
from .compare_commands import compare
from .console import open_stderr, open_stdout, print_json, resumable, show, watching
from .doctor import diagnose, removable, repair
from .export_commands import export
from .interruption import Terminated
from .mcp_commands import mcp
from .moe_commands import moe_app
from .options import JsonOption
from .overviews import tabulate_checks, tabulate_findings
from .panel_commands import ask, plan, solve, timeline
from .pools import check_pool
from .profile_commands import aggregators, profile, study
from .remix_commands import remix_app
from .report_commands import report
from .serve_commands import serve
from .tables import clean_text

__all__ = ["app", "main"]

app = typer.Typer(
    help="Recruit local language models by skill, run each once, merge their answers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
pool_app = typer.Typer(help="Look at a pool file.", no_args_is_help=True)
app.add_typer(pool_app, name="pool")
app.add_typer(moe_app, name="moe")
app.add_typer(remix_app, name="remix")
for command in (
    ask,
    solve,
    plan,
    timeline,
    profile,
    aggregators,
    study,
    compare,
    report,
    serve,
    mcp,
    export,
):
    app.command()(command)


@app.command()
def demo(
    examples: Annotated[Path, typer.Option(help="Folder with the demo's questions.")] = Path(
        "examples"
    ),
    pool: Annotated[
        Path | None, typer.Option("--pool", help="Another pool than the laptop's.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Where it keeps its answers.")] = Path(
        "runs/demo"
    ),
) -> None:
    """Profile, solve and compare on real small models; a few minutes on two cores."""
    from .demo import run_demo

    with resumable(out), watching() as progress:
        run_demo(examples, pool, out, open_stdout(), progress)


@app.command()
def schema(
    of: Annotated[
        Literal["pool", "events"],
        typer.Option("--of", help="Pool files, or what the graph tells while it runs."),
    ] = "pool",
    out: Annotated[Path | None, typer.Option("--out", help="Write to a file.")] = None,
) -> None:
    """Print a JSON Schema: of pool files, for editors, or of the graph's events, for user interfaces."""
    content = PoolFile.model_json_schema() if of == "pool" else describe_events()
    text = json.dumps(content, indent=2)
    if out is None:
        typer.echo(text)
    else:
        out.write_text(text + "\n", encoding="utf-8")


@pool_app.command("check")
def pool_check(
    pool: Annotated[Path, typer.Argument(help="Pool file.")],
    as_json: JsonOption = False,
) -> None:
    """Check a pool file: every expert's weights, address, adapter, and whether they fit."""
    checks = check_pool(Catalog.load(pool))
    if as_json:
        print_json([check.to_json() for check in checks])
    else:
        show(tabulate_checks(checks))
    if any(check.problem for check in checks):
        raise typer.Exit(1)


@app.command()
def doctor(
    as_json: JsonOption = False,
    fix: Annotated[
        bool, typer.Option("--repair", help="Remove packages that break vLLM on a CPU.")
    ] = False,
    pool: Annotated[
        Path | None, typer.Option("--pool", help="Also say what of this pool would be loaded.")
    ] = None,
) -> None:
    """Tell what is installed, what fits into memory, what would work here, and why not."""
    findings = diagnose()
    if fix and (packages := removable(findings)):
        typer.echo(repair(packages), err=True)
        findings = diagnose()
    checks = [] if pool is None else check_pool(Catalog.load(pool))
    if as_json:
        told = [finding.to_json() for finding in findings]
        print_json({"findings": told, "pool": [check.to_json() for check in checks]})
    else:
        show(tabulate_findings(findings), *([tabulate_checks(checks)] if checks else []))
    if any(finding.status == "broken" for finding in findings) or any(c.problem for c in checks):
        raise typer.Exit(1)


def _terminate(_number: int, _frame: object) -> None:
    raise Terminated


def main() -> None:
    """Run the command line; what a person can correct is one sentence and exit status 2."""
    # SIGTERM ends whatever runs as Ctrl-C does, and says that it was that; a run with a pool drains first.
    signal.signal(signal.SIGTERM, _terminate)
    os.environ.setdefault("LANGGRAPH_STRICT_MSGPACK", "true")
    try:
        app(standalone_mode=True)
    except InputError as error:
        open_stderr().print(f"[red]error:[/red] {clean_text(str(error), 2000)}", soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt as error:  # no command had begun yet
        sys.exit(143 if isinstance(error, Terminated) else 130)
    except BrokenPipeError:
        # Whoever read us has gone (`| head`); Python must not complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


if __name__ == "__main__":
    main()
