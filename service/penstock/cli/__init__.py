"""Define the command line. Exit codes: 0 done, 1 refused by the service, 2 wrong usage or configuration, 130 Ctrl-C.

Only typer and rich are imported for `--help`; each command imports what it needs when it runs.
"""

from __future__ import annotations

from typing import Annotated

import typer

from penstock.cli import (
    chat,
    config,
    demo,
    download,
    experts,
    generate,
    inspect,
    keys,
    playground,
    plugins,
    quantize,
    serve,
)
from penstock.cli.failures import Commands

app = typer.Typer(
    cls=Commands,
    name="penstock",
    help="A gRPC inference service for reasoning models on vLLM, with thinking budgets that hold exactly.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _versions(asked: bool) -> None:
    if asked:
        inspect.version()
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_versions, is_eager=True, help="Show the versions, like `penstock version`."
        ),
    ] = False,
) -> None:
    pass


app.command()(serve.serve)
app.command()(demo.demo)
app.command()(playground.playground)
app.command()(chat.chat)
app.command()(generate.generate)
app.command()(inspect.count)
app.command()(quantize.quantize)
app.command()(download.download)
app.command()(inspect.model)
app.command()(experts.experts)
app.add_typer(config.commands, name="config")
app.add_typer(keys.commands, name="keys")
app.command()(inspect.version)
plugins.add_commands(app)
