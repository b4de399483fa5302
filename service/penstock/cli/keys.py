"""Run `penstock keys new`, `list` and `revoke` on the file that `auth.keys_file` names; a running service reloads
it.
"""

from __future__ import annotations

import json as json_module
import re
from datetime import UTC, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from penstock.cli import options as o
from penstock.cli.failures import EXIT_REFUSED, fail

if TYPE_CHECKING:
    from penstock.config.security import ApiKey

commands = typer.Typer(help="API keys of the service.", no_args_is_help=True)
KeysFile = Annotated[
    Path | None, typer.Option("--file", help="The key file; default: the value of auth.keys_file.", dir_okay=False)
]


@commands.command()
def new(
    caller: Annotated[str, typer.Argument(help="Name of the caller that uses the key; letters, digits, dots, dashes.")],
    file: KeysFile = None,
    days: Annotated[float | None, typer.Option(min=0.001, help="Days until the key expires; default: never.")] = None,
    config: o.ConfigFile = None,
    json: o.Json = False,
) -> None:
    """Create a key and print it once: the file gets only its hash."""
    from penstock.auth import key_file
    from penstock.auth.api_keys import make
    from penstock.config.security import CALLER_NAME

    if not re.fullmatch(CALLER_NAME, caller):
        raise typer.BadParameter(f"{caller!r} does not match {CALLER_NAME}", param_hint="CALLER")
    path = _path(file, config)
    key, entry = make(caller, None if days is None else timedelta(days=days))
    key_file.change(path, lambda entries: (*entries, entry))
    if json:
        typer.echo(json_module.dumps({"key": key, **_shown(entry)}))
        return
    typer.echo(key)
    typer.echo(f"key {entry.id} of {caller} is in {path}; it cannot be shown again", err=True)


@commands.command("list")
def show(file: KeysFile = None, config: o.ConfigFile = None, json: o.Json = False) -> None:
    """List the keys with their callers, without any secrets."""
    from penstock.auth import key_file

    entries = key_file.entries(_path(file, config))
    if json:
        typer.echo(json_module.dumps([_shown(entry) for entry in entries]))
        return
    for entry in entries:
        until = f"until {entry.expires.astimezone(UTC):%Y-%m-%d %H:%M} UTC" if entry.expires else "never expires"
        typer.echo(f"{entry.id}  {entry.caller}  {until}")


@commands.command()
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="Id of the key, as `penstock keys list` shows it.")],
    file: KeysFile = None,
    config: o.ConfigFile = None,
    json: o.Json = False,
) -> None:
    """Revoke a key: running calls end normally, new ones are refused."""
    from penstock.auth import key_file

    path = _path(file, config)
    if key_id not in {entry.id for entry in key_file.entries(path)}:
        fail(f"{path} has no key {key_id}; see `penstock keys list`")
        raise typer.Exit(EXIT_REFUSED)
    key_file.change(path, lambda entries: tuple(entry for entry in entries if entry.id != key_id))
    typer.echo(json_module.dumps({"revoked": key_id}) if json else f"key {key_id} is no longer in {path}")


def _path(file: Path | None, config: Path | None) -> Path:
    path = file or o.configuration(config, None).config.auth.keys_file
    if path is None:
        raise typer.BadParameter("no key file: set --file, or auth.keys_file in the configuration", param_hint="--file")
    return path


def _shown(entry: ApiKey) -> dict[str, str | None]:
    return entry.model_dump(mode="json", include={"id", "caller", "created", "expires"})
