"""The command that serves a panel to other agents, by the Model Context Protocol."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from typing import Annotated, Literal

import typer

from ..agents import Catalog, Pool
from ..retrieval import InputError
from .console import open_stderr
from .consulting import Consultant
from .interruption import Terminated, run_interruptibly
from .mcp import PanelServer, need_mcp
from .mcp_transports import HttpSettings, open_wire, serve_http, serve_stdio
from .options import (
    AbstainOption,
    AdaptiveOption,
    AggregatorOption,
    CostOption,
    KOption,
    MergingOption,
    PolicyOption,
    PoolOption,
    ProfileOption,
    SamplesOption,
    SeedOption,
)
from .pools import find_pool
from .session import PanelSettings

__all__ = ["mcp"]

STDIO_GRACE = 1.0
"""Clients kill a server that has not ended two seconds after SIGTERM."""


def mcp(
    pool: PoolOption = None,
    profile: ProfileOption = None,
    k: KOption = None,
    policy: PolicyOption = "skill",
    adaptive: AdaptiveOption = None,
    merging: MergingOption = "posterior",
    aggregator: AggregatorOption = None,
    abstain_below: AbstainOption = 0.0,
    cost_weight: CostOption = 0.0,
    samples: SamplesOption = 1,
    seed: SeedOption = 0,
    transport: Annotated[
        Literal["stdio", "http"],
        typer.Option("--transport", help="stdin and stdout of this process, or streamable HTTP."),
    ] = "stdio",
    host: Annotated[
        str,
        typer.Option("--host", help="Address to listen on; others than this machine's need a key."),
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="0 takes a free one and prints it.")
    ] = 8001,
    api_key_env: Annotated[
        str | None, typer.Option("--api-key-env", help="Environment variable that holds the key.")
    ] = None,
    max_body: Annotated[int, typer.Option("--max-body", min=1, help="Bytes of a message.")] = 1
    << 20,
    max_calls: Annotated[
        int, typer.Option("--max-calls", min=1, help="Most calls of a panel for one question.")
    ] = 16,
    running: Annotated[
        int, typer.Option("--running", min=1, help="Questions worked on at one time.")
    ] = 16,
    seconds: Annotated[
        float, typer.Option("--seconds", min=0.1, help="Wall time of a question.")
    ] = 600.0,
    grace: Annotated[
        float,
        typer.Option(
            "--grace", min=0, help="Seconds that running questions get after SIGTERM (HTTP)."
        ),
    ] = 10.0,
) -> None:
    """Serve the panel to other agents as the MCP tools `ask_experts` and `list_experts`."""
    need_mcp()
    panel = PanelSettings(
        k=k,
        profile=profile,
        policy=policy,
        adaptive=adaptive,
        merging=merging,
        aggregator=aggregator,
        abstain_below=abstain_below,
        cost_weight=cost_weight,
        samples=samples,
        seed=seed,
    )
    settings = HttpSettings(
        host=host, api_key=_read_key(api_key_env), max_body=max_body, grace=grace
    )
    made = Pool(Catalog.load(find_pool(pool)))
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(message)s")
    try:
        with contextlib.ExitStack() as stack:
            wire = stack.enter_context(open_wire()) if transport == "stdio" else None
            listener = None if wire else stack.enter_context(_listen(host, port))
            stack.enter_context(made)
            made.check()
            consultant = Consultant(panel.resources(made), max_calls=max_calls, seconds=seconds)
            server = PanelServer(consultant, running=running)
            if wire is not None:
                serving = serve_stdio(server, wire, max_line=max_body)
                run_interruptibly(serving, made, grace=STDIO_GRACE)
                # Clients send SIGTERM two seconds after they have closed the stream: we are ending already.
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                return
            assert listener is not None
            number = listener.getsockname()[1]
            shown = f"[{host}]" if ":" in host else host
            heard, cut_off = asyncio.run(
                serve_http(
                    server,
                    listener,
                    settings,
                    lambda: typer.echo(f"serving on http://{shown}:{number}/mcp"),
                )
            )
    except KeyboardInterrupt as error:
        raise typer.Exit(143 if isinstance(error, Terminated) else 130) from None
    if heard is not None and cut_off:
        open_stderr().print(f"[yellow]ended:[/yellow] questions given up: {cut_off}")
        raise typer.Exit(128 + heard)
    open_stderr().print("ended: every question that was running has been answered")


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise InputError(f"{host}:{port} cannot be listened on: {error}") from None


def _read_key(name: str | None) -> str | None:
    if name is None:
        return None
    key = os.environ.get(name, "").strip()
    if not key:
        raise InputError(
            f"the environment variable {name} is empty or not set; it has to hold the key"
        )
    return key
