"""Open a bundle: check its slices, unpack its files, and install its packages. The standard library is enough."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from _bundle import manifest as m
from _bundle import slices
from _bundle.manifest import BundleError, Manifest

Progress = Callable[[str], None]
_INSTALLED = "installed"
"""File in the environment that names the bundle, by the SHA-256 of its manifest, whose packages it has."""
_SPARE_BYTES = 64 << 20


def open_bundle(folder: Path, to: Path, *, install: bool, sha256: str | None, progress: Progress) -> Manifest:
    """Unpack the bundle in `folder` into `to`, and install its packages into `to`/venv.

    What an interrupted run has finished is kept. Raises BundleError.
    """
    source = folder / m.NAME
    text = m.load(source)  # read once: what is compared with the SHA-256 is what is used
    found = hashlib.sha256(text).hexdigest()
    if sha256 is not None and found != sha256.lower():
        raise BundleError(f"{source} has SHA-256 {found}, not {sha256}: it is not the bundle that you expect")
    manifest = m.parse(text, source)
    if install:
        _check_machine(manifest)
    slices.verify(manifest, folder, progress)
    _check_links(to)
    with _alone(to), _told_of_a_full_disk(to):
        _check_folder(to, found)
        _check_space(manifest, to, install=install)
        (to / m.NAME).write_bytes(text)
        slices.extract(manifest, folder, to, progress)
        if install:
            _install(manifest, to, found, progress)
    return manifest


def _check_machine(manifest: Manifest) -> None:
    here = ".".join(map(str, sys.version_info[:2]))
    if here != manifest.python:
        raise BundleError(
            f"the packages are for Python {manifest.python}, this is {here}: run python{manifest.python} bundle.pyz"
        )
    if platform.machine() != manifest.machine:
        raise BundleError(f"the packages are for {manifest.machine}, this machine is {platform.machine()}")


@contextmanager
def _alone(to: Path) -> Iterator[None]:
    """Let one process at a time write into the folder."""
    try:
        to.mkdir(parents=True, exist_ok=True)
        with (to / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BundleError(f"another process is opening a bundle in {to}: wait for it") from None
            yield
    except OSError as error:
        raise BundleError(f"cannot write into {to}: {error.strerror or error}") from error


@contextmanager
def _told_of_a_full_disk(to: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise BundleError(f"the disk of {to} is full: make room, and run this again to continue") from None
        raise


def _check_links(to: Path) -> None:
    """Raise where a link below the folder would lead what is written to another place, or a pipe would not end.

    The environment (venv) has links of its own.
    """
    for folder, folders, files in os.walk(to):
        for name in (*folders, *files):
            path = Path(folder) / name
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise BundleError(f"{path} is a link or a special file: remove it, or name a new folder with --to")
        if Path(folder) == to and "venv" in folders:
            folders.remove("venv")


def _check_folder(to: Path, found: str) -> None:
    manifest = to / m.NAME
    if manifest.exists():
        if m.digest(manifest) != found:
            raise BundleError(f"{to} has another bundle: name a new folder with --to, or remove that one")
    elif any(path.name != ".lock" for path in to.iterdir()):
        raise BundleError(f"{to} is not empty: name a new folder with --to")


def _check_space(manifest: Manifest, to: Path, *, install: bool) -> None:
    missing = sum(piece.size for piece in manifest.files if not _has_size(to / piece.name, piece.size))
    if install and not (to / "venv").exists():
        missing += manifest.installed_bytes
    free = shutil.disk_usage(to).free
    if missing and missing + _SPARE_BYTES > free:
        needed = _mib(missing + _SPARE_BYTES)
        raise BundleError(f"{to} needs {needed} MiB more, {_mib(free)} MiB are free: make room, or use another --to")


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _mib(size: int) -> str:
    return f"{-(-size // 2**20):,}"


def _install(manifest: Manifest, to: Path, found: str, progress: Progress) -> None:
    venv = to / "venv"
    marker = venv / _INSTALLED
    if marker.exists() and marker.read_text(encoding="utf-8") == found:
        return
    listed = to / "requirements.txt"
    if not listed.is_file() or listed.read_bytes() != m.requirements(manifest.packages).encode():
        raise BundleError("requirements.txt does not list the packages of the manifest: do not use this bundle")
    shutil.rmtree(venv, ignore_errors=True)
    progress("making the virtual environment")
    log = to / "install.log"
    with log.open("w", encoding="utf-8") as out:
        hint = "Python's ensurepip is needed (Debian: apt-get install python3-venv)"
        _run([sys.executable, "-I", "-m", "venv", str(venv)], out, log, f"cannot make {venv}; {hint}")
        progress(f"installing {len(manifest.packages)} packages")
        pip = [str(venv / "bin/python"), "-I", "-m", "pip", "--disable-pip-version-check", "--no-input", "install"]
        local = ["--no-index", f"--find-links={to / 'wheels'}", "--no-deps", "--no-compile", "--require-hashes"]
        _run([*pip, *local, f"--requirement={listed}"], out, log, "pip could not install the packages")
    marker.write_text(found, encoding="utf-8")


def _run(command: list[str], out: object, log: Path, failed: str) -> None:
    """Run a command without the user's configuration of pip and Python. Raises BundleError, or OSError (ENOSPC)."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHON"))}
    environment["PIP_CONFIG_FILE"] = os.devnull
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out, check=False)  # type: ignore[call-overload]
    if done.returncode:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        if any(os.strerror(errno.ENOSPC) in line for line in lines):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        last = next((line for line in reversed(lines) if line.strip()), "no output")
        raise BundleError(f"{failed}: {last}; {log} has all of it")
