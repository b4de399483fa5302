"""Run `penstock quantize`: write an FP8 checkpoint from a bfloat16 one."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated

import typer

from penstock.cli import options as o


def quantize(
    source: Annotated[Path, typer.Argument(help="Checkpoint directory with bfloat16 weights.", file_okay=False)],
    target: Annotated[Path, typer.Argument(help="Directory to create; must not exist.")],
    json: o.Json = False,
) -> None:
    """Write an FP8 checkpoint: e4m3 weights in blocks of 128 x 128, like the official FP8 checkpoints."""
    from penstock.cli.preflight import why_not_load
    from penstock.errors import ConfigError

    if not source.exists():
        raise ConfigError(
            f"there is no directory {source}; a model of Hugging Face must be downloaded first: "
            "hf download ORG/NAME --local-dir DIRECTORY"
        )
    if wrong := list(why_not_load(str(source))):
        raise ConfigError("\n".join(wrong))
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    from penstock.engine.vllm.fp8.write import write

    columns = (BarColumn(), DownloadColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)
        written = write(
            source,
            target,
            lambda done, total, name: bar.update(task, completed=done, total=total, description=name),
        )
    if json:
        facts = {
            "source_bytes": written.source_bytes,
            "bytes": written.bytes,
            "ratio": round(written.ratio, 4),
            "converted_tensors": written.converted_tensors,
            "kept_modules": len(written.kept_modules),
        }
        typer.echo(json_module.dumps(facts))
        return
    typer.echo(
        f"{target}: {written.bytes / 1e6:.1f} MB, {written.ratio:.2f} of {written.source_bytes / 1e6:.1f} MB; "
        f"{written.converted_tensors} weights in FP8, {len(written.kept_modules)} kept"
    )
