"""Describe what a bundle holds: its slices, the files in them, the packages, and what was left out.

The files follow each other as one stream of bytes, in the order of the manifest, and the slices are pieces of it. No
archive format is involved: a bundle cannot hold links, devices, or files outside its folder.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path, PurePosixPath
from typing import Any

FORMAT = 1
NAME = "manifest.json"
MAX_MANIFEST_BYTES = 16 << 20
_MAX_NAME_BYTES, _MAX_PART_BYTES = 1024, 255
"""Of a file in a bundle: its whole path, and each of its parts, as file systems allow them."""
CHUNK_BYTES = 1 << 20
TOP = ("wheels", "model", "chart", "files", "requirements.txt", "images.txt", "sbom.cdx.json")
"""Folders and files that a bundle may hold."""
_SHOWN = 80
"""Characters of a text of the manifest that a message shows."""
_SLICE_NAME = re.compile(r"slice\.[0-9]{4,6}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PYTHON = re.compile(r"3\.[0-9]{1,2}")


class BundleError(Exception):
    """Report in one line what is wrong, and what to do."""


@dataclass(frozen=True)
class Piece:
    """Describe a slice or a file: its name, its bytes, and their SHA-256."""

    name: str
    size: int
    sha256: str
    executable: bool = False


@dataclass(frozen=True)
class Package:
    """Describe a Python package: the file of its wheel, and how many bytes of device code were blanked in it."""

    name: str
    version: str
    wheel: str
    sha256: str
    blanked_bytes: int = 0


@dataclass(frozen=True)
class LeftOut:
    """Describe something that the bundle does not hold, and why."""

    name: str
    why: str


@dataclass(frozen=True)
class Manifest:
    """Describe a bundle.

    `python` is the version that the wheels are for, such as "3.11"; `machine` the processor; `architecture` the compute
    capability to which device code was thinned (90), or None. `model` is the model's folder, or empty.
    `installed_bytes` is the size of the wheels' contents.
    """

    version: str
    lock: str
    lock_sha256: str
    python: str
    machine: str
    architecture: int | None
    installed_bytes: int
    slices: tuple[Piece, ...]
    files: tuple[Piece, ...]
    packages: tuple[Package, ...] = ()
    images: tuple[str, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    model: str = ""
    format: int = field(default=FORMAT)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"


def read(path: Path) -> Manifest:
    """Return the manifest in a file. Raises BundleError where it is missing, damaged, or of another format."""
    return parse(load(path), path)


def load(path: Path) -> bytes:
    """Return the bytes of a manifest's file. Raises BundleError where it is missing, too long, or no regular file."""
    if not path.exists():
        raise BundleError(f"there is no {path}: name the folder that has {NAME} and the slices")
    if not path.is_file():  # a pipe or a device may never end
        raise BundleError(f"{path} is no regular file: copy the bundle again")
    with path.open("rb") as file:
        data = file.read(MAX_MANIFEST_BYTES + 1)
    if len(data) > MAX_MANIFEST_BYTES:
        raise BundleError(f"{path} has more than {MAX_MANIFEST_BYTES:,} bytes: it is no manifest of a bundle")
    return data


def parse(text: bytes, path: Path) -> Manifest:
    """Return the manifest that a file has. Raises BundleError where it is damaged, or of another format."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        raise BundleError(f"{path} is no valid JSON: it was cut or changed on the way; copy it again") from None
    try:
        return _checked(_parsed(data), path)
    except (KeyError, TypeError, AttributeError):
        raise BundleError(f"{path} is no manifest of a bundle: a part is missing or has the wrong type") from None


def requirements(packages: Iterable[Package]) -> str:
    """Return pip's list of the packages, with the hashes of their wheels."""
    return "".join(f"{one.name}=={one.version} --hash=sha256:{one.sha256}\n" for one in packages)


def digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            sha.update(chunk)
    return sha.hexdigest()


def _parsed(data: dict[str, Any]) -> Manifest:
    if data["format"] != FORMAT:
        raise BundleError(f"the bundle has format {data['format']!r}, not {FORMAT}: use the bundle's own bundle.pyz")
    lists: dict[str, type[Any]] = {"slices": Piece, "files": Piece, "packages": Package, "left_out": LeftOut}
    whole = {name: tuple(kind(**one) for one in data[name]) for name, kind in lists.items()}
    names = {one.name for one in fields(Manifest)}
    return Manifest(**{**data, **whole, "images": tuple(data["images"])}) if set(data) == names else _wrong()


def _wrong() -> Manifest:
    raise KeyError


def _checked(manifest: Manifest, path: Path) -> Manifest:
    for one in (*manifest.slices, *manifest.files):
        if type(one.size) is not int or one.size < 0 or not _SHA256.fullmatch(one.sha256):
            raise BundleError(f"{path}: {one.name!r} has no valid size and SHA-256")
    if type(manifest.installed_bytes) is not int or manifest.installed_bytes < 0:
        raise TypeError
    _check_texts(manifest, path)
    for one in manifest.slices:
        if not _SLICE_NAME.fullmatch(one.name):
            raise BundleError(f"{path}: {one.name!r} is no name of a slice, such as slice.0000")
    names = [one.name for one in manifest.files]
    for name in (*names, *([manifest.model] if manifest.model else [])):
        check_path(name)
    _check_unique(names, path)
    _check_unique([one.name for one in manifest.slices], path)
    if sum(one.size for one in manifest.slices) != sum(one.size for one in manifest.files):
        raise BundleError(f"{path}: the slices and the files do not have the same number of bytes")
    hashes = {one.name: one.sha256 for one in manifest.files}
    for package in manifest.packages:
        name = f"wheels/{package.wheel}"
        if name not in hashes:
            raise BundleError(f"{path}: the wheel of {package.name} is not among the files")
        if hashes[name] != package.sha256:
            raise BundleError(f"{path}: the wheel of {package.name} has two different SHA-256")
    return manifest


def _check_texts(manifest: Manifest, path: Path) -> None:
    """Raise unless all texts are texts that can be shown: `open` prints them, and a terminal obeys what it gets."""
    top = (manifest.version, manifest.lock, manifest.lock_sha256, manifest.machine, *manifest.images, manifest.model)
    packages = (text for one in manifest.packages for text in (one.name, one.version, one.wheel, one.sha256))
    left_out = (text for one in manifest.left_out for text in (one.name, one.why))
    for text in (*top, *packages, *left_out):
        if not text.isprintable():
            raise BundleError(f"{path}: {text[:_SHOWN]!r} has characters that cannot be shown: do not use this bundle")
    if not _PYTHON.fullmatch(manifest.python):
        raise BundleError(f"{path}: python must be a version such as 3.12, got {manifest.python[:_SHOWN]!r}")


def check_path(name: str) -> None:
    """Raise BundleError unless a name is a plain path below the folder that it is unpacked into."""
    parts = PurePosixPath(name).parts
    plain = "/".join(parts) == name and ".." not in parts and "\\" not in name and name.isprintable()
    if not plain or not parts or parts[0] not in TOP:
        shown = repr(name[:_SHOWN])
        raise BundleError(f"the manifest names {shown}, which is no path in a bundle: do not use this bundle")
    if len(name.encode()) > _MAX_NAME_BYTES or max(len(part.encode()) for part in parts) > _MAX_PART_BYTES:
        raise BundleError(
            f"the manifest names {name[:_SHOWN]!r}...: a path may have {_MAX_NAME_BYTES} bytes, and"
            f" {_MAX_PART_BYTES} in each of its parts; do not use this bundle"
        )


def _check_unique(names: Iterable[str], path: Path) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise BundleError(f"{path}: {name!r} is there twice")
        seen.add(name)
    for name in seen:
        if any(str(parent) in seen for parent in PurePosixPath(name).parents):
            raise BundleError(f"{path}: {name!r} is below a name that is a file itself")
