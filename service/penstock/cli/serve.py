"""Run `penstock serve`: load the configuration from all sources and serve until a signal."""

from __future__ import annotations

import json as json_module
import time
from pathlib import Path
from typing import Annotated

import typer

from penstock.cli import options as o
from penstock.cli.preflight import preflight

PROGRESS_PREFIX = "penstock: "


# One parameter for each option.
def serve(
    listen: Annotated[str | None, typer.Option(help="host:port; port 0 takes a free one. [server.listen]")] = None,
    model: Annotated[str | None, typer.Option(help="Checkpoint directory or name. [engine.model]")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or gpu. [engine.device]")] = None,
    engine_kind: Annotated[str | None, typer.Option(hidden=True)] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Allow plaintext on all addresses. [server.insecure]")
    ] = False,
    config: o.ConfigFile = None,
    settings: o.Settings = None,
    check_config: Annotated[bool, typer.Option("--check-config", help="Check the configuration and exit.")] = False,
    ready_file: Annotated[
        Path | None, typer.Option(help="File to write host:port into once the service is ready.", dir_okay=False)
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print progress as JSON lines on stdout.")] = False,
) -> None:
    """Serve a model. Without configuration: the demo model that comes with Penstock, on 127.0.0.1:50051."""
    named = {"--listen": listen, "--model": model, "--device": device, "--engine-kind": engine_kind}
    flags = {name: value for name, value in named.items() if value is not None}
    loaded = o.configuration(config, settings, flags | ({"--insecure": "true"} if insecure else {}))
    started = time.monotonic()
    from penstock.files import write_text

    def say(phase: str, **facts: str) -> None:
        seconds = time.monotonic() - started
        if json:
            typer.echo(json_module.dumps({"seconds": round(seconds, 3), "phase": phase, **facts}))
        else:
            typer.echo(f"{PROGRESS_PREFIX}{seconds:6.1f} s  {phase}", err=True)

    def ready(address: str) -> None:
        say(f"ready on {address}; try `penstock chat --target {address}`", address=address)
        if ready_file is not None:
            write_text(ready_file, f"{address}\n")  # Written completely, because others wait for this file.

    for note in loaded.notes:
        say(note)
    preflight(loaded.config, ready_file)
    if check_config:
        say("the configuration is valid")
        return
    import uvloop

    from penstock.server import app

    code = uvloop.run(app.serve(loaded.config, on_progress=say, on_ready=ready))
    app.leave(code)
    raise typer.Exit(code)
