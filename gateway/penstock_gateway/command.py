"""Serve OpenAI's HTTP API in front of a Penstock service: `penstock gateway`."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand

if TYPE_CHECKING:
    from penstock_gateway.upstream import Encryption

DEFAULT_LISTEN = "127.0.0.1:8080"


# One parameter for each option.
def gateway(
    listen: Annotated[
        str, typer.Option(envvar="PENSTOCK_GATEWAY_LISTEN", help="host:port; port 0 takes a free one.")
    ] = DEFAULT_LISTEN,
    target: Annotated[
        str, typer.Option(envvar="PENSTOCK_TARGET", help="host:port of the service.")
    ] = "127.0.0.1:50051",
    tls: Annotated[
        bool | None,
        typer.Option(
            "--tls/--plaintext", envvar="PENSTOCK_TLS", help="Use TLS with the system's CA certificates, or plaintext."
        ),
    ] = None,
    ca: Annotated[
        Path | None,
        typer.Option(
            "--ca", envvar="PENSTOCK_CA_FILE", dir_okay=False, help="Use TLS with this CA certificate (PEM file)."
        ),
    ] = None,
    certificate: Annotated[
        Path | None,
        typer.Option(
            envvar="PENSTOCK_CLIENT_CERTIFICATE_FILE",
            dir_okay=False,
            help="Certificate to show to the service, for mutual TLS (PEM file).",
        ),
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option(envvar="PENSTOCK_CLIENT_KEY_FILE", dir_okay=False, help="Its private key (PEM file)."),
    ] = None,
    tls_server_name: Annotated[
        str,
        typer.Option(
            envvar="PENSTOCK_TLS_SERVER_NAME", help="Name in the service's certificate, where it is not the target's."
        ),
    ] = "",
    limit: Annotated[
        list[str] | None,
        typer.Option(
            envvar="PENSTOCK_GATEWAY_LIMITS",
            metavar="NAME=VALUE",
            help="A bound, such as max_requests=2048; docs/reference/limits.md has them all. Repeat for several.",
        ),
    ] = None,
) -> None:
    """Serve OpenAI's HTTP API in front of a service. Each caller's bearer key is passed on to the service."""
    # gRPC's client then reads its sockets in the thread that waits for results, not in a pool of threads: a fifth less
    # CPU for each message. Where gRPC does not know the name any more, the setting has no effect.
    os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_client")
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # why the service does not answer is told in words of its own
    try:
        from penstock_gateway.upstream import Encryption

        _run(listen, target, Encryption(tls, ca, certificate, key, tls_server_name), limit or ())
    except KeyboardInterrupt:
        raise _interrupted() from None


def _run(listen: str, target: str, encryption: Encryption, limits: Sequence[str]) -> None:
    from penstock_gateway import server, tracing
    from penstock_gateway.app import create_app
    from penstock_gateway.settings import Settings
    from penstock_gateway.upstream import connect

    host, colon, port = listen.rpartition(":")
    if not colon or not re.fullmatch("[0-9]{1,5}", port) or int(port) > 65535:
        raise _refused(f"--listen must be host:port, got {listen!r}")
    try:
        settings = Settings.of(limits)
        client = connect(target, encryption)
        tracing.start()
    except ValueError as error:
        raise _refused(str(error)) from None
    try:
        listener = server.bind(host.strip("[]"), int(port), settings)
    except OSError as error:
        typer.echo(f"penstock gateway: cannot bind {listen}: {error.strerror or error}", err=True)
        raise typer.Exit(1) from None
    typer.echo(f"penstock gateway: http://{server.address_of(listener)} in front of {target}", err=True)
    signal.signal(signal.SIGTERM, _ended)  # after the drain uvicorn raises the signal again that ended it
    server.run(create_app(client, settings, partial(encryption.why_unreachable, target)), listener, settings)


class _Alone(TyperCommand):
    """Run the command without `penstock` before it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments."""
        try:
            return super().parse_args(ctx, args)
        except KeyboardInterrupt:  # Typer imports Pydantic here, and would say nothing.
            raise _interrupted() from None


app = typer.Typer(add_completion=False)
app.command(cls=_Alone)(gateway)


def _interrupted() -> typer.Exit:
    typer.echo("penstock gateway: interrupted", err=True)
    return typer.Exit(130)


def _refused(why: str) -> typer.Exit:
    """Tell in one line what cannot be served, and return the exit."""
    typer.echo(f"penstock gateway: {why}", err=True)
    return typer.Exit(2)


def _ended(*_: object) -> NoReturn:
    """Exit with status 0, so that what ends with the interpreter ends in order."""
    raise SystemExit(0)
