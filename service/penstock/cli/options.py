"""Define the options that several commands share."""

from __future__ import annotations

import enum
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penstock.cli.failures import EXIT_REFUSED, fail_call, no_client

if TYPE_CHECKING:
    from penstock_client import Client, ImagePart
    from penstock_client.spec import Prompt
    from penstock_proto.v1.generation_pb2 import GenerationSpec
    from rich.console import Console

    from penstock.config.sources import Loaded

DEFAULT_TARGET = "127.0.0.1:50051"


class Thinking(enum.StrEnum):
    """Enumerate the thinking modes."""

    fast = "fast"
    auto = "auto"
    thinking = "thinking"


class EarlyExit(enum.StrEnum):
    """Enumerate what may end a thought early."""

    off = "off"
    marker = "marker"
    probe = "probe"


Target = Annotated[str, typer.Option(envvar="PENSTOCK_TARGET", help="host:port of the service.")]
Tls = Annotated[
    bool | None,
    typer.Option(
        "--tls/--plaintext", envvar="PENSTOCK_TLS", help="Use TLS with the system's CA certificates, or plaintext."
    ),
]
Ca = Annotated[
    Path | None,
    typer.Option(
        "--ca", envvar="PENSTOCK_CA_FILE", dir_okay=False, help="Use TLS with this CA certificate (PEM file)."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON with the API's field names.")]
ThinkingOption = Annotated[
    Thinking | None, typer.Option(help="fast: no thought. auto: the server chooses a budget. Default: the server's.")
]
Budget = Annotated[int | None, typer.Option(help="Maximum thought tokens; -1 is no limit, 0 is no thought.")]
ShowThoughts = Annotated[bool, typer.Option("--show-thoughts/--hide-thoughts", help="Show the thought, dimmed.")]
Timeout = Annotated[float | None, typer.Option(min=0.001, help="Deadline in seconds, which --thinking auto keeps.")]
System = Annotated[str | None, typer.Option(help="System message.")]
MaxOutputTokens = Annotated[int | None, typer.Option(help="Maximum output tokens, thought plus answer.")]
Temperature = Annotated[float | None, typer.Option(help="Sampling temperature; 0 is greedy.")]
Seed = Annotated[int | None, typer.Option(help="Seed for repeatable sampling.")]

ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="TOML or YAML file; also PENSTOCK_CONFIG.", dir_okay=False)
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Set any configuration key; see `penstock config show`."),
]


def encryption(tls: bool | None, ca: Path | None) -> bool | Path | None:
    """Return the client's TLS setting. --plaintext overrides a CA from the environment."""
    return ca if ca is not None and tls is not False else tls


@contextmanager
def connected(target: str, tls: bool | None, ca: Path | None = None) -> Iterator[Client]:
    """Yield a client of the service at `target`. Errors of its calls are reported, and end the command."""
    from penstock_client import Client, PenstockError

    try:
        client = Client(target, tls=encryption(tls, ca))
    except ValueError as error:
        raise no_client(error, target) from None
    try:
        with client:
            yield client
    except PenstockError as error:
        fail_call(error, target, tls, ca)
        raise typer.Exit(EXIT_REFUSED) from None


def spec(prompt: Prompt, **options: Any) -> GenerationSpec:
    """Return the request. Raise BadParameter for values that no request can have."""
    from penstock_client import build_spec

    try:
        return build_spec(prompt, **options)
    except (TypeError, ValueError) as error:
        raise typer.BadParameter(str(error)) from None


def with_images(text: str, files: Sequence[str] | None, option: str = "--image") -> str | list[ImagePart | str]:
    """Return the content of a message: the images, then the text. Raise BadParameter for what cannot be read."""
    if not files:
        return text
    from penstock_client import ImagePart

    images: list[ImagePart | str] = []
    for file in files:
        try:
            images.append(ImagePart.from_file(Path(file).expanduser()))
        except OSError as error:
            why = f"cannot read {file}: {(error.strerror or type(error).__name__).lower()}"
            raise typer.BadParameter(why, param_hint=option) from None
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint=option) from None
    return [*images, text]


def configuration(file: Path | None, settings: list[str] | None, flags: dict[str, str] | None = None) -> Loaded:
    """Return the service's configuration from all sources. Raise ConfigError."""
    from penstock.config.sources import load

    given = dict(flags or {})
    for setting in settings or ():
        key, equals, value = setting.partition("=")
        if not equals:
            raise typer.BadParameter(f"must be SECTION.KEY=VALUE, got {setting!r}", param_hint="--set")
        given[key.strip()] = value
    return load(file, os.environ, given)


def refuse_unwritable(*files: tuple[str, Path | str | None]) -> None:
    """Raise BadParameter for a file that cannot be written, before the work rather than after it; `-` is stdout."""
    from penstock.files import why_not_writable

    for option, file in files:
        if file not in (None, "-") and (why := why_not_writable(Path(file))):
            raise typer.BadParameter(why, param_hint=option)


def tables_beside(json: str | None, notes: Console, least_width: int) -> Console:
    """Return the console for figures: stdout, or `notes` where JSON goes to stdout (`-`).

    In a terminal narrower than `least_width` lines wrap, but every figure is complete.
    """
    from rich.console import Console

    console = notes if json == "-" else Console()
    console.width = max(console.width, least_width)
    return console


def text_of(argument: str) -> str:
    """Return the argument, or all of stdin for `-`."""
    if argument != "-":
        return argument
    try:
        return typer.get_text_stream("stdin", encoding="utf-8", errors="strict").read()
    except UnicodeDecodeError:
        raise typer.BadParameter("stdin must be UTF-8 text") from None
