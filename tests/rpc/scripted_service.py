"""A service as users start it, in a process of its own, with the scripted engine behind it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def scripted_service(
    folder: Path, replies: Sequence[Mapping[str, object]], settings: Mapping[str, str] | None = None
) -> Iterator[str]:
    """Gives its host:port."""
    (folder / "replies.json").write_text(json.dumps(replies))
    settings = {
        "engine.kind": "scripted",
        "engine.model": str(folder / "replies.json"),
        # On a fast machine one caller would start more short answers a second than the default allows.
        "admission.max_starts_per_second": "1e6",
        **(settings or {}),
    }
    flags = [flag for key, value in settings.items() for flag in ("--set", f"{key}={value}")]
    ready = folder / "address"
    command = [sys.executable, "-m", "penstock", "serve", "--listen", "127.0.0.1:0", "--ready-file", str(ready)]
    process = subprocess.Popen([*command, *flags], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    end = time.monotonic() + 60
    while not ready.exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    if not ready.exists():
        process.kill()
        pytest.fail(process.communicate()[0])
    try:
        yield ready.read_text().strip()
    finally:
        process.terminate()
        try:
            print(process.communicate(timeout=120)[0])  # pytest shows it where the test failed
        except subprocess.TimeoutExpired:
            process.kill()
            raise
