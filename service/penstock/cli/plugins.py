"""Add the commands of other distributions, such as penstock-bench, to `penstock`."""

from __future__ import annotations

from importlib import metadata

import typer

GROUP = "penstock.commands"
"""Entry points of this group are Typer applications (commands with subcommands) or functions (one command)."""

_ELSEWHERE = {
    "bench": ("penstock-bench", "Measure a service under load."),
    "eval": ("penstock-bench", "Measure how accurate answers are against thinking."),
    "gateway": ("penstock-gateway", "Serve OpenAI's HTTP API in front of a service."),
    "gpu-check": ("penstock-bench", "Check the engine on a GPU."),
    "pilot": ("penstock-bench", "Write a report of a service, from measurements."),
    "plan": ("penstock-bench", "Plan hardware for a model."),
}
"""Commands of our other distributions: the distribution, and what the command does."""


def add_commands(app: typer.Typer) -> None:
    """Add each installed command to `app`; those that are not installed say how to get them."""
    found = {entry.name: entry for entry in metadata.entry_points(group=GROUP)}
    for name in sorted(found):
        try:
            command = found[name].load()
        except Exception as error:  # another distribution's fault must not keep `penstock serve` from starting
            typer.echo(f"penstock: cannot load the command {name} ({found[name].value}): {error}", err=True)
            continue
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name)
        else:
            app.command(name)(command)
    for name in sorted(_ELSEWHERE.keys() - found.keys()):
        _add_missing(app, name)


def _add_missing(app: typer.Typer, name: str) -> None:
    distribution, purpose = _ELSEWHERE[name]

    @app.command(
        name,
        help=f"{purpose} Needs {distribution}.",
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
        hidden=True,
    )
    def missing(context: typer.Context) -> None:
        raise typer.BadParameter(
            f"`penstock {name}` is in {distribution}, which is not installed: pip install {distribution}"
        )
