"""`penstock demo`: a service of its own on a free port, real questions through the client, and a clean end."""

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
    ("It may think as long as it likes:", {"thinking": "thinking"}),
    ("The same with a budget of 4 thought tokens, which holds exactly:", {"thinking": "thinking", "budget": 4}),
    ("And without thinking at all:", {"thinking": "fast"}),
)
# Greedy, so that everybody sees the same; bounded, so that it ends soon whatever the model does.
SETTINGS = {"temperature": 0.0, "max_output_tokens": 512}
NEXT = """\
What to try next
  penstock serve                                              the same service, for as long as you like
  penstock chat                                               talk with it, from a second terminal
  penstock generate "What is 48 + 27 + 36 + 15?" --budget 64  one question under a budget
  penstock model                                              what is served, what is on and why
docs/quick-start.md shows the next steps; docs/index.md lists all pages."""
DRAIN_SECONDS = 3.0
STOP_SECONDS = 20.0
HEARTBEAT_SECONDS = 15.0
_PICTURE_COLUMNS = 110
_PR_SET_PDEATHSIG = 1


class ServiceDied(Exception):
    """The service ended before it was asked to."""


def demo(
    question: Annotated[str, typer.Option(help="What to ask.")] = QUESTION,
    start_seconds: Annotated[float, typer.Option(help="Most time for the service to start.")] = 600.0,
    picture: Annotated[Path | None, typer.Option(help="Also draw the stream as an SVG file.")] = None,
) -> None:
    """Start the service on the small model, ask it a question, show the stream, and stop."""
    from penstock_client import Client, PenstockError
    from rich.console import Console

    from penstock.files import replacing

    o.refuse_unwritable(("--picture", picture))
    # A picture shows what a terminal shows, whatever this output is.
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
        # The log stays: whoever reads this will want more of it.
        fail(f"{error}; the last lines of its log, {log}:", *_tail(log))
        raise typer.Exit(EXIT_REFUSED) from None
    except BaseException:
        shutil.rmtree(directory)
        raise
    shutil.rmtree(directory)
    console.out(f"\n{NEXT}", highlight=False)


@contextmanager
def _service(directory: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Runs `penstock serve` with no configuration; it is gone at the end, whatever happened."""
    command = [sys.executable, "-m", "penstock", "serve", "--listen", "127.0.0.1:0"]
    # Where this process is killed nobody will come back to its stream, which a service waits for by default.
    command += ["--set", f"server.drain_seconds={DRAIN_SECONDS}", "--ready-file"]
    # An end by a signal must take the service along: make it an exception.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _exit_by_signal)
    with log.open("wb") as out:
        # A session of its own: Ctrl-C reaches this process alone, and what the service started can be ended with it.
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
    """In the new process: the kernel sends it SIGTERM when this one is gone, even by SIGKILL. See prctl(2)."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _exit_by_signal(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)


def _stop(process: subprocess.Popen[bytes]) -> None:
    try:
        # The first signal lets calls under way end; ours are over, so the second only cuts short what is stuck.
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
        # It may have left the engine's processes behind: they are all that can be in its session now.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _wait_until_ready(
    process: subprocess.Popen[bytes], ready_file: Path, log: Path, seconds: float, console: Console
) -> str:
    """The service's address. Raises ServiceDied where it ends, or is not ready in time."""
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
    """What the service last said that it does."""
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
