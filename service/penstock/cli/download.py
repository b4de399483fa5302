"""Run `penstock download`: fetch a model into the cache before a service needs it."""

from __future__ import annotations

import json as json_module
import time
from pathlib import Path
from typing import Annotated

import typer

from penstock.cli import options as o


# One parameter for each option.
def download(
    model: Annotated[str, typer.Option(help="Hugging Face name. [engine.model]")] = "",
    revision: Annotated[str, typer.Option(help="Branch, tag or commit. [engine.revision]")] = "",
    verify: Annotated[bool, typer.Option("--verify", help="Verify the SHA-256 of large files, once each.")] = False,
    config: o.ConfigFile = None,
    settings: o.Settings = None,
    json: o.Json = False,
) -> None:
    """Download a model into Hugging Face's cache. Existing files stay, and incomplete ones are continued."""
    from huggingface_hub import constants
    from huggingface_hub.utils.tqdm import disable_progress_bars

    from penstock.engine.download import HuggingFace, fetch
    from penstock.errors import ConfigError

    named = {"engine.model": model, "engine.revision": revision}
    said = [f"{key}={value}" for key, value in named.items() if value]
    engine = o.configuration(config, [*(settings or []), *said], {}).config.engine
    if not engine.model or engine.model.startswith(("/", "s3://", "gs://", "az://")):
        raise ConfigError(f"engine.model: must be a Hugging Face name to be downloaded, got {engine.model!r}")
    disable_progress_bars()
    started = time.monotonic()

    def on_file(name: str, done: int, total: int) -> None:
        rate = done / max(1e-3, time.monotonic() - started)
        typer.echo(f"{done / 1e9:8.2f} of {total / 1e9:.2f} GB  {rate / 1e6:6.0f} MB/s  {name}", err=True)

    stamps = Path(constants.HF_HOME) / "penstock-verified" if verify else None
    fetched = fetch(HuggingFace(), engine.model, engine.revision, verified_stamps=stamps, on_file=on_file)
    if json:
        facts = {"model": engine.model, "commit": fetched.commit, "files": fetched.files, "bytes": fetched.bytes}
        typer.echo(json_module.dumps(facts | {"verified_files": fetched.verified}))
        return
    typer.echo(f"{engine.model} at {fetched.commit}: {fetched.files} files, {fetched.bytes / 1e9:.2f} GB")
