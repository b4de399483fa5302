"""Start a service for one measurement, and wait until it takes calls."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

START_SECONDS, STOP_SECONDS = 900.0, 30.0
"""A GPU that has compiled no kernels yet needs minutes; a server that ends is noticed at once."""
_POLL_SECONDS = 0.1
_TAIL_LINES = 15


class NotServing(RuntimeError):
    """Report a service that did not start; the message ends with the last lines of its log, where it has one."""


@contextmanager
def served(
    model: Path | str, settings: Sequence[str] = (), *, seconds: float = START_SECONDS, log: Path | None = None
) -> Iterator[str]:
    """Run `penstock serve` with a model on a free port of loopback, and end it afterwards.

    Yields its address. Raises `NotServing`, also where it is not ready after `seconds`. Its output is kept in `log`.
    """
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as temporary:
        ready, log = Path(temporary) / "address", log or Path(temporary) / "log"
        command = [sys.executable, "-m", "penstock", "serve", "--listen", "127.0.0.1:0", "--ready-file", str(ready)]
        flags = [part for setting in settings for part in ("--set", setting)]
        with log.open("wb") as out:
            process = subprocess.Popen([*command, "--model", str(model), *flags], stdout=out, stderr=out)
        try:
            yield address_of(process, ready, seconds=seconds, log=log)
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def address_of(
    process: subprocess.Popen[bytes], ready_file: Path, *, seconds: float = START_SECONDS, log: Path | None = None
) -> str:
    """Return the address that `penstock serve --ready-file` writes once it takes calls. Raises `NotServing`."""
    wait_until_ready(process, ready_file.exists, seconds=seconds, log=log)
    return ready_file.read_text(encoding="utf-8").strip()  # The service writes it completely before it has its name.


def wait_until_ready(
    process: subprocess.Popen[bytes] | subprocess.Popen[str],
    is_ready: Callable[[], bool],
    *,
    seconds: float = START_SECONDS,
    log: Path | None = None,
    name: str = "penstock serve",
) -> None:
    """Return once `is_ready` is true. Raises `NotServing` where the process ends before, or after `seconds`."""
    until = time.monotonic() + seconds
    while not is_ready():
        if process.poll() is not None:
            why = f"{name} ended with exit status {process.returncode} before it was ready"
        elif time.monotonic() > until:
            why = f"{name} was not ready within {seconds:g} s"
        else:
            time.sleep(_POLL_SECONDS)
            continue
        lines = [] if log is None else log.read_text(encoding="utf-8", errors="replace").splitlines()[-_TAIL_LINES:]
        raise NotServing("\n".join([f"{why}:" if lines else why, *lines]))
