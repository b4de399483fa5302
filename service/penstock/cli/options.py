"""Options that several commands share, and what they are turned into."""

from __future__ import annotations

import enum
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penstock.cli.failures import EXIT_REFUSED, fail_call

if TYPE_CHECKING:
    from penstock_client import Client
    from penstock_proto.v1.generation_pb2 import GenerationSpec
    from rich.console import Console

    from penstock.config.sources import Loaded

DEFAULT_TARGET = "127.0.0.1:50051"


class Thinking(enum.StrEnum):
    fast = "fast"
    auto = "auto"
    thinking = "thinking"


Target = Annotated[str, typer.Option(envvar="PENSTOCK_TARGET", help="host:port of the service.")]
Tls = Annotated[
    bool | None, typer.Option("--tls/--plaintext", envvar="PENSTOCK_TLS", help="Encrypt, with the system's roots.")
]
Ca = Annotated[
    Path | None,
    typer.Option("--ca", envvar="PENSTOCK_CA_FILE", dir_okay=False, help="Encrypt; a certificate in PEM that vouches."),
]
Json = Annotated[bool, typer.Option("--json", help="For machines: JSON, named as in the API.")]
ThinkingOption = Annotated[
    Thinking | None, typer.Option(help="fast: no thought. auto: the server picks a budget. Default: the server's.")
]
Budget = Annotated[int | None, typer.Option(help="Most thought tokens; -1 is no limit, 0 is none.")]
ShowThoughts = Annotated[bool, typer.Option("--show-thoughts/--hide-thoughts", help="Show the thought, dimmed.")]
Timeout = Annotated[float | None, typer.Option(min=0.001, help="Deadline in seconds; `auto` plans inside it.")]
System = Annotated[str | None, typer.Option(help="System message.")]
MaxOutputTokens = Annotated[int | None, typer.Option(help="Most output tokens, thought plus answer.")]
Temperature = Annotated[float | None, typer.Option(help="0 is greedy.")]
Seed = Annotated[int | None, typer.Option(help="Makes sampling repeatable.")]

ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="TOML or YAML file; also PENSTOCK_CONFIG.", dir_okay=False)
]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Any key; see `penstock config show`.")
]


def encryption(tls: bool | None, ca: Path | None) -> bool | Path | None:
    """What the client takes: --plaintext wins over a CA from the environment, which says which TLS is meant."""
    return ca if ca is not None and tls is not False else tls


@contextmanager
def connected(target: str, tls: bool | None, ca: Path | None = None) -> Iterator[Client]:
    """A client of the service at `target`. What the service refuses is told in words, and ends the command."""
    from penstock_client import Client, PenstockError

    try:
        client = Client(target, tls=encryption(tls, ca))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    try:
        with client:
            yield client
    except PenstockError as error:
        fail_call(error, target, tls, ca)
        raise typer.Exit(EXIT_REFUSED) from None


def spec(prompt: str | list[tuple[str, str]], **options: Any) -> GenerationSpec:
    """The request; what no request can hold is wrong usage."""
    from penstock_client import build_spec

    try:
        return build_spec(prompt, **options)
    except (TypeError, ValueError) as error:
        raise typer.BadParameter(str(error)) from None


def configuration(file: Path | None, settings: list[str] | None, flags: dict[str, str] | None = None) -> Loaded:
    """The service's configuration from all sources. Raises ConfigError."""
    from penstock.config.sources import load

    given = dict(flags or {})
    for setting in settings or ():
        key, equals, value = setting.partition("=")
        if not equals:
            raise typer.BadParameter(f"{setting!r} is not SECTION.KEY=VALUE", param_hint="--set")
        given[key.strip()] = value
    return load(file, os.environ, given)


def refuse_unwritable(*files: tuple[str, Path | str | None]) -> None:
    """Raise BadParameter for a file that could not be written: before the work rather than after it; `-` is stdout."""
    from penstock.files import why_not_writable

    for option, file in files:
        if file not in (None, "-") and (why := why_not_writable(Path(file))):
            raise typer.BadParameter(why, param_hint=option)


def tables_beside(json: str | None, notes: Console, least_width: int) -> Console:
    """Return where figures are shown: stdout, or `notes` where the JSON takes that (`-`).

    In a terminal narrower than `least_width` lines wrap, but every figure is whole.
    """
    from rich.console import Console

    console = notes if json == "-" else Console()
    console.width = max(console.width, least_width)
    return console


def text_of(argument: str) -> str:
    """The argument, or all of stdin for `-`."""
    if argument != "-":
        return argument
    try:
        return typer.get_text_stream("stdin", encoding="utf-8", errors="strict").read()
    except UnicodeDecodeError:
        raise typer.BadParameter("stdin is not UTF-8 text") from None
