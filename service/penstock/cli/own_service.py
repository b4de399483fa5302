"""Run a service of a command's own: `penstock serve` in another process, which ends with this one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from penstock.cli.serve import PROGRESS_PREFIX

if TYPE_CHECKING:
    from rich.console import Console

DRAIN_SECONDS = 3.0
STOP_SECONDS = 20.0
HEARTBEAT_SECONDS = 15.0
# argv: the number of the signal, the pid of the parent, the command. 1 is PR_SET_PDEATHSIG, see prctl(2).
_END_WITH_PARENT = """
import ctypes, os, sys
number, parent, *command = sys.argv[1:]
ctypes.CDLL(None).prctl(1, int(number))
if os.getppid() == int(parent):
    os.execvp(command[0], command)
"""


class ServiceDied(Exception):
    """Report that the service ended unexpectedly."""


@contextmanager
def own_directory(prefix: str, *kept_for: type[Exception]) -> Iterator[Path]:
    """Yield a new folder for logs. It is removed at the end, also where this process is killed.

    Args:
        prefix: Beginning of its name, in the folder for temporary files.
        kept_for: Failures after which it stays, for its logs.
    """
    directory = Path(tempfile.mkdtemp(prefix=prefix))
    # Its input ends when this process does. Ctrl-C does not reach its session.
    remover = subprocess.Popen(
        ["sh", "-c", 'cat; rm -rf -- "$0"', str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield directory
    except kept_for:
        remover.kill()
        raise
    finally:
        assert remover.stdin is not None
        remover.stdin.close()
        remover.wait()


@contextmanager
def own_service(directory: Path, settings: Mapping[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """Run `penstock serve`; it has ended when the context does.

    Args:
        directory: Gets the service's `serve.log`, and `address` once it is ready.
        settings: Settings by their configuration key. Default: none, which serves the small model.
    """
    command = [sys.executable, "-m", "penstock", "serve", "--listen", "127.0.0.1:0"]
    # Where this process is killed nobody will come back to its stream, which a service waits for by default.
    command += ["--set", f"server.drain_seconds={DRAIN_SECONDS}"]
    command += [flag for key, value in (settings or {}).items() for flag in ("--set", f"{key}={value}")]
    # An end by a signal must take the service along: make it an exception.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _exit_by_signal)
    process = start([*command, "--ready-file", str(directory / "address")], log_of(directory))
    try:
        yield process
    finally:
        _stop(process)


def start(command: list[str], log: Path, environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Start a process that ends with this one, also where this one is killed; its output goes to `log`.

    It has a session of its own: Ctrl-C reaches this process only, and all processes that it starts can be ended.
    """
    with log.open("wb") as out:
        return subprocess.Popen(
            ended_with_parent(command, signal.SIGTERM),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def ended_with_parent(command: Sequence[str], number: signal.Signals) -> list[str]:
    """Return a command that becomes `command`, to which the kernel sends a signal when this process ends.

    subprocess's `preexec_fn` would do it in the forked process, where gRPC's threads are missing: some of them crash.
    """
    return [sys.executable, "-ISc", _END_WITH_PARENT, str(int(number)), str(os.getpid()), *command]


def _exit_by_signal(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)


def _stop(process: subprocess.Popen[bytes]) -> None:
    try:
        # The first signal lets running calls end; ours have ended, so the second one ends only what is stuck.
        for seconds in (DRAIN_SECONDS, STOP_SECONDS):
            process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(seconds)
                break
        else:
            raise subprocess.TimeoutExpired(process.args, STOP_SECONDS)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        process.kill()
        process.wait()
    if process.returncode != 0:
        # It may have left processes of the engine behind, which are all that can be in its session now.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def wait_until_ready(process: subprocess.Popen[bytes], directory: Path, seconds: float, console: Console) -> str:
    """Return the service's address. Raise ServiceDied where it ends or is not ready in time."""
    ready_file, log = directory / "address", log_of(directory)
    started, shown, shown_at = time.monotonic(), "", 0.0
    with console.status("starting the service") as status:
        while not ready_file.exists():
            elapsed = time.monotonic() - started
            if process.poll() is not None:
                raise ServiceDied(f"the service ended with exit code {process.returncode}")
            if elapsed > seconds:
                raise ServiceDied(f"the service was not ready after {seconds:g} s")
            phase = _phase(log)
            if console.is_terminal:
                status.update(f"{phase} ({elapsed:.0f} s)")
            elif phase != shown or elapsed > shown_at + HEARTBEAT_SECONDS:
                console.out(f"{elapsed:6.1f} s  {phase}", highlight=False)
                shown, shown_at = phase, elapsed
            time.sleep(0.1)
    console.out(f"ready after {time.monotonic() - started:.1f} s", style="dim", highlight=False)
    return ready_file.read_text().strip()


def _phase(log: Path) -> str:
    """Return the last phase that the service has reported."""
    said = [line for line in _lines(log) if line.startswith(PROGRESS_PREFIX)]
    return said[-1].removeprefix(PROGRESS_PREFIX).partition(" s  ")[2] if said else "starting the service"


def log_of(directory: Path) -> Path:
    """Return the path of the service's log."""
    return directory / "serve.log"


def tail(log: Path) -> list[str]:
    """Return the last lines of a log, indented."""
    return [f"  {line}" for line in _lines(log)[-15:]]


def _lines(log: Path) -> list[str]:
    return log.read_text(errors="replace").splitlines() if log.exists() else []
