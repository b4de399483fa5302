"""Fetch the wheels of a lock, build the project's own, and thin those with device code."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from _bundle import thin
from _bundle.manifest import BundleError, LeftOut, Package, digest

PYTORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
_GLIBC = range(5, 40)
"""Minor versions of glibc 2 whose wheels are taken; the newest systems that the images know have 2.39."""
_LEGACY = ("manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64", "linux_x86_64")


@dataclass(frozen=True)
class Wheel:
    """Describe a package and the file of its wheel."""

    package: Package
    path: Path


def normal(name: str) -> str:
    """Return a package's name as indexes spell it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def entries_of(lock: str) -> dict[str, str]:
    """Return the entries of a lock, with their hashes, by name."""
    found = re.split(r"\n(?=\S)", lock.strip())
    entries = {normal(re.split(r"[\[=]", one)[0]): one for one in found if "==" in one and not one.startswith("#")}
    if not entries:
        raise BundleError("the lock names no package")
    return entries


def fetch(entries: dict[str, str], work: Path, python: str) -> list[Wheel]:
    """Return the wheels of the entries, for one version of Python. Those of an earlier run are not fetched again."""
    folder = work / f"wheels-{python}"
    folder.mkdir(parents=True, exist_ok=True)
    lock = work / "fetch.lock"
    lock.write_text("".join(f"{entry}\n" for entry in entries.values()), encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "download", "--quiet"]
    exact = ["--no-deps", "--require-hashes", "--only-binary=:all:", f"--requirement={lock}"]
    exact += [f"--dest={folder}", f"--find-links={folder}"]  # what is there is not fetched again
    tags = [f"--python-version={python}", "--implementation=cp", *(f"--platform={one}" for one in _platforms())]
    done = subprocess.run([*pip, *exact, *tags], capture_output=True, text=True, check=False)
    if done.returncode and "+cpu" in entries.get("torch", ""):
        index = f"--extra-index-url={PYTORCH_CPU_INDEX}"  # the hashes make a second index safe
        done = subprocess.run([*pip, *exact, *tags, index], capture_output=True, text=True, check=False)
    done.check_returncode()
    by_name = {(normal(path.name.split("-")[0]), path.name.split("-")[1]): path for path in folder.glob("*.whl")}
    return [_wheel(name, re.split(r"==|\s|;", entry)[1], by_name) for name, entry in entries.items()]


def _platforms() -> list[str]:
    return [*(f"manylinux_2_{minor}_x86_64" for minor in reversed(_GLIBC)), *_LEGACY]


def _wheel(name: str, version: str, by_name: dict[tuple[str, str], Path]) -> Wheel:
    path = by_name.get((name, version))
    if path is None:
        raise BundleError(f"pip brought no wheel of {name}=={version}")
    return Wheel(Package(name, version, path.name, digest(path)), path)


def own(work: Path, projects: Sequence[str], root: Path) -> tuple[list[Wheel], Path]:
    """Return wheels of the project's own packages and the chart's folder, from what is committed."""
    commit, seconds = _git(root, "log", "-1", "--format=%H %ct").split()
    folder = work / f"own-{commit}"
    if not (folder / "complete").exists():
        with tempfile.TemporaryDirectory() as scratch:
            source = Path(scratch)
            _git(root, "archive", f"--output={source / 'source.tar'}", "HEAD")
            with tarfile.open(source / "source.tar") as archive:
                archive.extractall(source, filter="data")
            pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet"]
            command = [
                *pip,
                "--no-deps",
                "--no-index",
                "--no-build-isolation",
                f"--wheel-dir={folder}",
                *(str(source / one) for one in projects),
            ]
            # With it the same commit gives the same bytes.
            environment = os.environ | {"SOURCE_DATE_EPOCH": seconds}
            subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
            shutil.copytree(source / "helm/penstock", folder / "chart", dirs_exist_ok=True)
        (folder / "complete").touch()
    found = []
    for path in sorted(folder.glob("*.whl")):
        name, version = path.name.split("-")[:2]
        found.append(Wheel(Package(normal(name), version, path.name, digest(path)), path))
    return found, folder / "chart"


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", str(root), *arguments], check=True, capture_output=True, text=True).stdout


def unpacked_bytes(path: Path) -> int:
    """Return the bytes of a wheel's contents."""
    with zipfile.ZipFile(path) as wheel:
        return sum(info.file_size for info in wheel.infolist())


def thin_all(
    found: Sequence[Wheel], architecture: int, work: Path, progress: Callable[[str], None]
) -> tuple[list[Wheel], list[LeftOut]]:
    """Return the wheels with device code for one compute capability alone, and the libraries that stay whole."""
    thinned, whole = [], []
    for number, one in enumerate(found, start=1):
        progress(f"thinning package {number} of {len(found)}")
        new, kept = _thin(one, architecture, work / f"thin-{architecture}")
        thinned.append(new)
        whole += [LeftOut(f"thinning of {name}", why) for name, why in kept.items()]
    return thinned, whole


def _thin(one: Wheel, architecture: int, folder: Path) -> tuple[Wheel, dict[str, str]]:
    path, notes = folder / one.path.name, folder / f"{one.path.name}.json"
    folder.mkdir(exist_ok=True)
    known = json.loads(notes.read_text(encoding="utf-8")) if notes.exists() else {}
    if known.get("from") != one.package.sha256:
        partial = path.with_name(f"{path.name}.partial")
        blanked, whole = thin_wheel(one.path, partial, architecture)
        partial.replace(path)
        known = {"from": one.package.sha256, "blanked": blanked, "whole": whole}
        notes.write_text(json.dumps(known), encoding="utf-8")
    if not known["blanked"]:
        return one, known["whole"]
    return Wheel(replace(one.package, sha256=digest(path), blanked_bytes=known["blanked"]), path), known["whole"]


def thin_wheel(source: Path, target: Path, architecture: int) -> tuple[int, dict[str, str]]:
    """Copy a wheel and thin its libraries; RECORD gets their new hashes.

    Returns the blanked bytes, and the libraries that stay whole, with the reason.
    """
    blanked, whole, hashes = 0, {}, {}
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new:
        # RECORD comes last in a wheel; here it does whatever the order was.
        for info in sorted(old.infolist(), key=lambda info: info.filename.endswith(".dist-info/RECORD")):
            data: bytes | bytearray = old.read(info)
            if ".so" in Path(info.filename).name:
                data = bytearray(data)
                try:
                    count = thin.blank(data, architecture)
                except thin.Unreadable as error:
                    whole[info.filename], count = str(error), 0
                blanked += count
                if count:
                    hashes[info.filename] = data
            elif info.filename.endswith(".dist-info/RECORD"):
                data = _record(data, hashes)
            new.writestr(info, bytes(data), zipfile.ZIP_DEFLATED)
    return blanked, whole


def _record(record: bytes | bytearray, changed: dict[str, bytearray]) -> bytes:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    for row in csv.reader(io.StringIO(record.decode())):
        if row and row[0] in changed:
            sha = base64.urlsafe_b64encode(hashlib.sha256(changed[row[0]]).digest()).rstrip(b"=").decode()
            row = [row[0], f"sha256={sha}", str(len(changed[row[0]]))]
        writer.writerow(row)
    return out.getvalue().encode()
