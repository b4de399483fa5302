"""Check an opened bundle: its files, every shared library of its packages, and one answer of the engine."""

from __future__ import annotations

import json
import os
import pkgutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from _bundle import manifest as m
from _bundle import slices
from _bundle.manifest import BundleError, Manifest

QUESTION = "What is 48 + 27 + 36 + 15?"
_BUDGET_TOKENS, _ANSWER_TOKENS = 64, 128
_DRIVER = "libcuda.so.1"
_ANSWER_SECONDS, _STOP_SECONDS, _POLL_SECONDS = 600.0, 60.0, 0.2


def check_bundle(folder: Path, *, token: bool, start_seconds: float, progress: Callable[[str], None]) -> list[str]:
    """Return a line for each thing that was checked. Raises BundleError for the first thing that is wrong."""
    manifest = m.read(folder / m.NAME)
    python = folder / "venv/bin/python"
    if not python.exists():
        raise BundleError(f"{folder} has no environment: run `bundle.pyz open` without --no-install first")
    progress(f"reading {len(manifest.files)} files")
    _check_files(manifest, folder)
    lines = [f"{len(manifest.files)} files have the SHA-256 of the manifest"]
    progress("loading every shared library of the packages")
    lines += _check_libraries(python)
    if token:
        progress("starting the service")
        lines.append(f"{QUESTION} {_answer(folder, manifest, start_seconds)}")
    return lines


def _check_files(manifest: Manifest, folder: Path) -> None:
    changed = [piece.name for piece in manifest.files if not slices.is_there(folder / piece.name, piece)]
    if changed:
        raise BundleError(
            f"{len(changed)} of {len(manifest.files)} files in {folder} are missing or changed, the first is "
            f"{changed[0]}: run `bundle.pyz open` again"
        )


def _check_libraries(python: Path) -> list[str]:
    program = pkgutil.get_data("_bundle", "libraries.py")
    assert program is not None
    done = subprocess.run([python, "-I", "-c", program.decode()], capture_output=True, text=True, check=False)
    try:
        found = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        last = (done.stderr.strip() or "no output").splitlines()[-1]
        raise BundleError(f"cannot try the packages' libraries, exit status {done.returncode}: {last}") from None
    if found["failures"]:
        raise BundleError(_failed(found["failures"]))
    return [
        f"{found['loaded']} shared libraries load",
        *(f"not loaded, as expected: {name}: {why}" for name, why in found["expected"].items()),
    ]


def _failed(failures: dict[str, str]) -> str:
    count = f"{len(failures)} shared libraries"
    if all(_DRIVER in why for why in failures.values()):
        return f"{count} need NVIDIA's driver ({_DRIVER}), which this machine does not have"
    name, why = next((name, why) for name, why in failures.items() if _DRIVER not in why)
    return f"{count} do not load, such as {name}: {why}"


def _answer(folder: Path, manifest: Manifest, start_seconds: float) -> str:
    """Return the engine's answer to a question, asked over gRPC."""
    penstock = str(folder / "venv/bin/penstock")
    model = [f"--model={(folder / manifest.model).resolve()}"] if manifest.model else []
    with tempfile.TemporaryDirectory(prefix="penstock-bundle-") as scratch:
        ready, log = Path(scratch) / "address", folder / "check.log"
        command = [penstock, "serve", "--listen=127.0.0.1:0", f"--ready-file={ready}", *model]
        with _running(command, log) as service:
            _wait(service, ready, log, start_seconds)
            address = ready.read_text(encoding="utf-8").strip()
            ask = [penstock, "generate", QUESTION, f"--budget={_BUDGET_TOKENS}", "--temperature=0"]
            asked = subprocess.run(
                [*ask, f"--max-output-tokens={_ANSWER_TOKENS}", f"--target={address}"],
                env=_offline(),
                capture_output=True,
                text=True,
                check=False,
                timeout=_ANSWER_SECONDS,
            )
    if asked.returncode or not asked.stdout.strip():
        raise BundleError(f"the service gave no answer: {(asked.stderr.strip() or 'no output').splitlines()[-1]}")
    return " ".join(asked.stdout.split())


def _offline() -> dict[str, str]:
    """Return this process' environment without the user's Python settings, and with Hugging Face told not to ask."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PENSTOCK_"))}
    return own | {"HF_HUB_OFFLINE": "1"}


@contextmanager
def _running(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as out:
        service = subprocess.Popen(command, env=_offline(), stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    try:
        yield service
    finally:
        service.terminate()
        try:
            service.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            service.kill()
            service.wait()


def _wait(service: subprocess.Popen[bytes], ready: Path, log: Path, seconds: float) -> None:
    until = time.monotonic() + seconds
    while not ready.exists():
        if service.poll() is not None:
            lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            last = lines[-1] if lines else "no output"
            raise BundleError(f"the service ended with exit status {service.returncode}: {last}; {log} has all of it")
        if time.monotonic() > until:
            raise BundleError(f"the service was not ready within {seconds:g} s; {log} has its output")
        time.sleep(_POLL_SECONDS)
