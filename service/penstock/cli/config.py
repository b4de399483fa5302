"""Run `penstock config show` and `penstock config check`."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated

import typer

from penstock.cli import options as o

commands = typer.Typer(help="The service's configuration.", no_args_is_help=True)


@commands.command()
def show(
    config: o.ConfigFile = None,
    settings: o.Settings = None,
    toml: Annotated[bool, typer.Option("--toml", help="Print TOML that loads back to the same values.")] = False,
    json: o.Json = False,
) -> None:
    """Show the configuration and where each value came from."""
    loaded = o.configuration(config, settings)
    if json:
        values = loaded.config.model_dump(mode="json")
        typer.echo(json_module.dumps({"config": values, "origins": dict(loaded.origins), "notes": loaded.notes}))
        return
    from penstock.config.rendering import to_toml

    if toml:
        typer.echo(to_toml(loaded.config, loaded.origins), nl=False)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for column in ("key", "value", "from"):
        table.add_column(column, overflow="fold")
    values = loaded.config.model_dump(mode="json")
    for key, origin in loaded.origins.items():
        section, _, name = key.partition(".")
        value = values[section][name]
        shown = "unset" if value is None else json_module.dumps(value, ensure_ascii=False)
        style = "dim" if origin == "default" else ""
        table.add_row(Text(key, style), Text(shown, style), Text(origin, style))
    Console().print(table)
    for note in loaded.notes:
        typer.echo(f"note: {note}", err=True)


@commands.command()
def check(file: Annotated[Path, typer.Argument(help="TOML or YAML file.")], json: o.Json = False) -> None:
    """Check one configuration file, without environment and flags."""
    from penstock.config.sources import load
    from penstock.errors import ConfigError

    try:
        load(file, {}, {})
    except ConfigError as error:
        if not json:
            raise
        typer.echo(json_module.dumps({"ok": False, "mistakes": error.message.splitlines()}))
        raise typer.Exit(2) from None
    typer.echo(json_module.dumps({"ok": True, "mistakes": []}) if json else f"{file} is a valid configuration")
