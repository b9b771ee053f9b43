"""The command that serves a panel over HTTP."""

from __future__ import annotations

import logging
import os
import sys
from typing import Annotated, Any

import typer

from ..agents import Catalog, Pool, PoolEvent
from ..retrieval import InputError
from .console import open_stderr
from .interruption import Terminated
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
from .tables import clean_text

__all__ = ["serve"]


def serve(
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
    host: Annotated[
        str,
        typer.Option("--host", help="Address to listen on; others than this machine's need a key."),
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="0 takes a free one and prints it.")
    ] = 8000,
    api_key_env: Annotated[
        str | None, typer.Option("--api-key-env", help="Environment variable that holds the key.")
    ] = None,
    max_body: Annotated[int, typer.Option("--max-body", min=1, help="Bytes of a request.")] = 1
    << 20,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", min=1, help="Most tokens that a request may ask for.")
    ] = 4096,
    max_n: Annotated[
        int, typer.Option("--max-n", min=1, help="Most answers of one expert to a request.")
    ] = 8,
    max_calls: Annotated[
        int, typer.Option("--max-calls", min=1, help="Most calls of a panel for one question.")
    ] = 16,
    running: Annotated[
        int, typer.Option("--running", min=1, help="Requests worked on at one time.")
    ] = 64,
    waiting: Annotated[
        int, typer.Option("--waiting", min=0, help="Requests that may wait for that.")
    ] = 256,
    seconds: Annotated[
        float, typer.Option("--seconds", min=0.1, help="Wall time of a request.")
    ] = 600.0,
    window: Annotated[
        float,
        typer.Option(
            "--window", min=0, help="Seconds in which questions meet to be asked together."
        ),
    ] = 0.02,
    grace: Annotated[
        float,
        typer.Option("--grace", min=0, help="Seconds that running requests get after SIGTERM."),
    ] = 10.0,
) -> None:
    """Answer over HTTP as OpenAI's chat API does: the panel, and each expert by its alias."""
    try:
        from .server import ServerSettings, create_app, open_socket, run_server
    except ImportError as error:
        raise InputError(f'the server needs {error.name}: pip install "expertmix[serve]"') from None
    limits: dict[str, Any] = {
        "host": host,
        "api_key": _read_key(api_key_env),
        "max_body": max_body,
        "max_tokens": max_tokens,
        "max_n": max_n,
        "max_calls": max_calls,
        "running": running,
        "waiting": waiting,
        "seconds": seconds,
        "window": window,
        "grace": grace,
    }
    ServerSettings(
        port=port, **limits
    )  # a setting that cannot be is told before anything is opened
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
    catalog = Catalog.load(find_pool(pool))
    try:
        with (
            open_socket(host, port) as listener,
            Pool(catalog, on_event=_EventLog().show) as opened,
        ):
            number = listener.getsockname()[1]
            opened.check()
            app = create_app(opened, panel, ServerSettings(port=number, **limits))
            shown = f"[{host}]" if ":" in host else host
            _begin_log()
            ending = run_server(
                app, listener, lambda: typer.echo(f"serving on http://{shown}:{number}")
            )
    except KeyboardInterrupt as error:  # while it began, or once more while it ended
        raise typer.Exit(143 if isinstance(error, Terminated) else 130) from None
    _tell_end(ending.signal, ending.cut_off)


def _read_key(name: str | None) -> str | None:
    if name is None:
        return None
    key = os.environ.get(name, "").strip()
    if not key:
        raise InputError(
            f"the environment variable {name} is empty or not set; it has to hold the key"
        )
    return key


def _begin_log() -> None:
    """Ids, statuses and seconds go to stderr; prompts and answers go nowhere."""
    log = logging.getLogger("expertmix.server")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False


class _EventLog:
    """Logs which models come and go."""

    def __init__(self) -> None:
        self._worked: set[int] = set()

    def show(self, event: PoolEvent) -> None:
        """Take in one event; called from the pool's thread."""
        log = logging.getLogger("expertmix.server")
        name = clean_text(event.weights)
        match event.kind:
            case "working":
                self._worked.add(event.engine)
            case "ready":
                log.info("%s is ready after %.1f s", name, event.seconds)
            case "failed" if not event.engine or event.engine not in self._worked:
                log.error("%s failed: %s", name, clean_text(event.message, 500))
            case "failed" | "died":  # what an engine says that has read prompts may quote one
                log.error("%s %s while it worked", name, event.kind)
            case _:
                pass


def _tell_end(signal: int | None, cut_off: int) -> None:
    if signal is None or not cut_off:
        open_stderr().print("ended: every request that was running has been answered")
        return
    open_stderr().print(f"[yellow]ended:[/yellow] requests given up: {cut_off}")
    raise typer.Exit(128 + signal)
