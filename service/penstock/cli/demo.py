"""Run `penstock demo`: a service on a free port, questions through the client, and a clean end."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from penstock.cli import options as o
from penstock.cli.failures import EXIT_REFUSED, fail
from penstock.cli.serve import PROGRESS_PREFIX

if TYPE_CHECKING:
    from penstock_client import Client
    from rich.console import Console

QUESTION = "What is 48 + 27 + 36 + 15?"
ASKED = (
    ("With no limit on thinking:", {"thinking": "thinking"}),
    ("With a budget of 4 thought tokens, which holds exactly:", {"thinking": "thinking", "budget": 4}),
    ("Without thinking:", {"thinking": "fast"}),
)
# Greedy, so that all users see the same; bounded, so that it ends soon whatever the model does.
SETTINGS = {"temperature": 0.0, "max_output_tokens": 512}
NEXT = """\
What to try next
  penstock serve                                              run the same service until Ctrl-C
  penstock chat                                               chat with it, from a second terminal
  penstock generate "What is 48 + 27 + 36 + 15?" --budget 64  ask one question with a budget
  penstock model                                              show the model, its features and limits
docs/quick-start.md shows the next steps; docs/index.md lists all pages."""
DRAIN_SECONDS = 3.0
STOP_SECONDS = 20.0
HEARTBEAT_SECONDS = 15.0
_PICTURE_COLUMNS = 110
_PR_SET_PDEATHSIG = 1


class ServiceDied(Exception):
    """Report that the service ended unexpectedly."""


def demo(
    question: Annotated[str, typer.Option(help="Question to ask.")] = QUESTION,
    start_seconds: Annotated[float, typer.Option(help="Maximum seconds for the service to start.")] = 600.0,
    picture: Annotated[Path | None, typer.Option(help="Also write the output as an SVG picture.")] = None,
) -> None:
    """Start the service on the demo model, ask it questions, show the streams, and stop it."""
    from penstock_client import Client, PenstockError
    from rich.console import Console

    from penstock.files import replacing

    o.refuse_unwritable(("--picture", picture))
    # A picture shows what a terminal would show, whatever stdout is.
    console = Console(record=True, width=_PICTURE_COLUMNS, force_terminal=True) if picture else Console()
    directory = Path(tempfile.mkdtemp(prefix="penstock-demo-"))
    log = directory / "serve.log"
    try:
        with _service(directory, log) as process:
            address = _wait_until_ready(process, directory / "address", log, start_seconds, console)
            with Client(address) as client:
                if picture:
                    console.export_text()  # forgets the start, which is not part of the picture
                _ask_all(client, question, console)
                if picture:
                    with replacing(picture) as partial:
                        console.save_svg(str(partial), title="penstock demo")
    except (ServiceDied, PenstockError) as error:
        # The log is kept, for more than its last lines.
        fail(f"{error}; the last lines of its log, {log}:", *_tail(log))
        raise typer.Exit(EXIT_REFUSED) from None
    except BaseException:
        shutil.rmtree(directory)
        raise
    shutil.rmtree(directory)
    console.out(f"\n{NEXT}", highlight=False)


@contextmanager
def _service(directory: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run `penstock serve` without configuration; it has ended when the context does."""
    command = [sys.executable, "-m", "penstock", "serve", "--listen", "127.0.0.1:0"]
    # Where this process is killed nobody will come back to its stream, which a service waits for by default.
    command += ["--set", f"server.drain_seconds={DRAIN_SECONDS}", "--ready-file"]
    # An end by a signal must take the service along: make it an exception.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _exit_by_signal)
    with log.open("wb") as out:
        # A session of its own: Ctrl-C reaches this process only, and all processes of the service can be ended.
        process = subprocess.Popen(
            [*command, str(directory / "address")],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )
    try:
        yield process
    finally:
        _stop(process)


def _end_with_parent() -> None:
    """Let the kernel send SIGTERM to the new process when this one ends, even by SIGKILL. See prctl(2)."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


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


def _wait_until_ready(
    process: subprocess.Popen[bytes], ready_file: Path, log: Path, seconds: float, console: Console
) -> str:
    """Return the service's address. Raise ServiceDied where it ends or is not ready in time."""
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


def _tail(log: Path) -> list[str]:
    return [f"  {line}" for line in _lines(log)[-15:]]


def _lines(log: Path) -> list[str]:
    return log.read_text(errors="replace").splitlines() if log.exists() else []


def _ask_all(client: Client, question: str, console: Console) -> None:
    from penstock.cli import show

    for title, options in ASKED:
        console.out(f"\n{title}\n> {question}", style="bold", highlight=False)
        printer = show.StreamPrinter(console, console, labels=not console.is_terminal)
        with client.stream(spec=o.spec(question, **options, **SETTINGS)) as events:
            try:
                for event in events:
                    printer.show(event)
            finally:
                printer.end_line()
        console.out(show.fitted(show.usage_line(events.response), console), style="cyan", highlight=False)
