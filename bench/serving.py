"""A service of one's own, for as long as a measurement takes."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

START_SECONDS, STOP_SECONDS = 300.0, 30.0
_TAIL_LINES = 15


class NotServing(Exception):
    """The service did not come up; the message ends with the last lines of its log."""


@contextmanager
def served(model: Path | str, settings: Sequence[str] = ()) -> Iterator[str]:
    """`penstock serve` with a model on a free port of loopback; gives its address. Raises `NotServing`."""
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as temporary:
        ready, log = Path(temporary) / "address", Path(temporary) / "log"
        command = [sys.executable, "-m", "penstock", "serve", "--listen", "127.0.0.1:0", "--ready-file", str(ready)]
        flags = [part for setting in settings for part in ("--set", setting)]
        with log.open("wb") as out:
            process = subprocess.Popen([*command, "--model", str(model), *flags], stdout=out, stderr=out)
        try:
            yield _address(process, ready, log)
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _address(process: subprocess.Popen[bytes], ready: Path, log: Path) -> str:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        if ready.is_file() and (address := ready.read_text(encoding="utf-8").strip()):
            return address
        if process.poll() is not None:
            break
        time.sleep(0.2)
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_TAIL_LINES:]
    raise NotServing("\n".join(["penstock serve did not come up:", *lines]))
