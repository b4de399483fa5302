"""Run `penstock experts`: the load of the experts as a live heat map, a picture or JSON."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from penstock.cli import options as o
from penstock.cli.failures import EXIT_INTERRUPTED

if TYPE_CHECKING:
    from penstock_client import ExpertLoad

_PICTURES = (".png", ".svg", ".pdf")


# One parameter for each option.
def experts(
    window: Annotated[
        float | None, typer.Option(min=0.001, max=3600, help="Window in seconds. Default: the server's.")
    ] = None,
    interval: Annotated[
        float | None, typer.Option(min=0.1, max=3600, help="Seconds between two updates. Default: 1.")
    ] = None,
    ranks: Annotated[
        int | None, typer.Option(min=1, help="Number of ranks to compute the balance for. Default: as served.")
    ] = None,
    once: Annotated[
        bool, typer.Option("--once", help="Show the load once and exit; the default if stdout is no terminal.")
    ] = False,
    png: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Write the load as a picture (.png, .svg, .pdf).")
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print JSON: once, or with --interval one line per update, until Ctrl-C.")
    ] = False,
    target: o.Target = o.DEFAULT_TARGET,
    tls: o.Tls = None,
    ca: o.Ca = None,
) -> None:
    """Show how many tokens each expert processes: a heat map per layer, until Ctrl-C."""
    if png is not None:
        _refuse_unwritable(png)
    goes_on = interval is not None if json else sys.stdout.isatty()
    with o.connected(target, tls, ca) as client:
        if once or png is not None or not goes_on:
            load = client.expert_load(window_seconds=window, ranks=ranks)
            _report(load, png, json)
        else:
            looks = client.watch_expert_load(window_seconds=window, interval_seconds=interval, ranks=ranks)
            with closing(looks):
                try:
                    _follow(looks, json)
                except KeyboardInterrupt:  # The normal way to leave.
                    raise typer.Exit(EXIT_INTERRUPTED) from None


def _report(load: ExpertLoad, png: Path | None, json: bool) -> None:
    from penstock.cli.show import print_json

    if png is not None:
        from penstock.cli.experts_plot import draw
        from penstock.files import replacing

        with replacing(png) as partial:
            draw(load, partial)
        typer.echo(f"wrote {png}", err=True)
    if json:
        print_json(load.raw)
    elif png is None:
        from rich.console import Console

        from penstock.cli.experts_map import heat_map

        console = Console()
        console.print(heat_map(load, console))


def _follow(loads: Iterator[ExpertLoad], json: bool) -> None:
    from rich.console import Console
    from rich.live import Live

    from penstock.cli.experts_map import heat_map
    from penstock.cli.show import print_json

    if json:
        for load in loads:
            print_json(load.raw)
        return
    console = Console()
    with Live(console=console, auto_refresh=False) as live:
        for load in loads:
            live.update(heat_map(load, console), refresh=True)


def _refuse_unwritable(png: Path) -> None:
    """Raise BadParameter for a picture that could not be written, before the server is asked."""
    if find_spec("matplotlib") is None:
        raise typer.BadParameter("needs matplotlib: pip install 'penstock[plots]'", param_hint="--png")
    if png.suffix not in _PICTURES:
        raise typer.BadParameter(f"must end in one of {', '.join(_PICTURES)}, got {png}", param_hint="--png")
    o.refuse_unwritable(("--png", png))
