"""Run `penstock playground`: a service, a gateway in front of it, and the page in the browser."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from penstock.cli.failures import EXIT_REFUSED, fail
from penstock.cli.own_service import (
    DRAIN_SECONDS,
    ServiceDied,
    log_of,
    own_directory,
    own_service,
    start,
    tail,
    wait_until_ready,
)
from penstock.cli.preflight import why_not_listen

_GATEWAY = "penstock_gateway"
_METRICS = "telemetry.prometheus_listen"
_METRICS_URL = "PENSTOCK_PLAYGROUND_METRICS_URL"
_GATEWAY_START_SECONDS = 60.0


def playground(
    listen: Annotated[str, typer.Option(help="host:port of the page; port 0 takes a free one.")] = "127.0.0.1:8080",
    browser: Annotated[bool, typer.Option(help="Open the page in the browser.")] = True,
    start_seconds: Annotated[float, typer.Option(help="Maximum seconds for the service to start.")] = 600.0,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Set a setting of the service, key=value; may be repeated.")
    ] = None,
) -> None:
    """Start the service on the demo model and a gateway, and open the playground. Ctrl-C ends all of them."""
    from rich.console import Console

    if find_spec(_GATEWAY) is None:
        fail("`penstock playground` needs penstock-gateway, which is not installed: pip install penstock-gateway")
        raise typer.Exit(EXIT_REFUSED)
    _check(listen)
    console, is_shown = Console(), False
    asked = {_METRICS: f"127.0.0.1:{_free_port()}"} | _pairs(settings or [])
    try:
        with (
            own_directory("penstock-playground-", ServiceDied) as directory,
            own_service(directory, asked) as service,
        ):
            address = wait_until_ready(service, directory, start_seconds, console)
            with _gateway(listen, address, f"http://{asked[_METRICS]}/metrics", directory) as (gateway, url):
                is_shown = True
                typer.echo(f"playground: {url}")
                typer.echo("Ctrl-C ends the page, the gateway and the service")
                if browser:
                    webbrowser.open(url)
                _wait(service, gateway)
    except ServiceDied as error:
        log = log_of(directory)
        fail(f"{error}; the last lines of its log, {log}:", *tail(log))
        raise typer.Exit(EXIT_REFUSED) from None
    except KeyboardInterrupt:
        if not is_shown:
            raise


def _check(listen: str) -> None:
    """Raise BadParameter for an address that no page can have, before the service loads its model."""
    host = listen.rpartition(":")[0]
    why = why_not_listen(listen) if host and host != "unix" else f"must be host:port, got {listen!r}"
    if why:
        raise typer.BadParameter(why, param_hint="--listen")


def _pairs(settings: list[str]) -> dict[str, str]:
    """Return settings by key. Raise BadParameter for one that is no pair."""
    made = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise typer.BadParameter(f"must be key=value, got {setting!r}", param_hint="--set")
        made[key] = value
    return made


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@contextmanager
def _gateway(
    listen: str, target: str, metrics_url: str, directory: Path
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Run `penstock gateway`; yield its process and its URL once it answers. Raise ServiceDied where it does not."""
    host, _, port = listen.rpartition(":")
    if port == "0":
        listen = f"{host}:{_free_port()}"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK_GATEWAY_")}
    command = [sys.executable, "-m", _GATEWAY, "--listen", listen, "--target", target, "--plaintext"]
    process = start(command, directory / "gateway.log", environment | {_METRICS_URL: metrics_url})
    try:
        url = f"http://{listen}/"
        _wait_for_gateway(process, url, directory)
        yield process, url
    finally:
        process.terminate()
        try:
            process.wait(DRAIN_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for_gateway(process: subprocess.Popen[bytes], url: str, directory: Path) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    end = time.monotonic() + _GATEWAY_START_SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            said = (directory / "gateway.log").read_text(errors="replace").strip()
            raise ServiceDied(f"the gateway ended with exit code {process.returncode}: {said[-500:]}")
        try:
            with opener.open(f"{url}healthz", timeout=5) as page:
                if json.load(page)["status"] == "ok":
                    return
        except (OSError, ValueError):
            time.sleep(0.1)
    raise ServiceDied(f"the gateway did not answer after {_GATEWAY_START_SECONDS:g} s")


def _wait(service: subprocess.Popen[bytes], gateway: subprocess.Popen[bytes]) -> None:
    """Return never; raise ServiceDied where one of the processes ends."""
    while True:
        for name, process in (("service", service), ("gateway", gateway)):
            if process.poll() is not None:
                raise ServiceDied(f"the {name} ended with exit code {process.returncode}")
        time.sleep(0.5)
