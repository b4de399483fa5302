"""Write files as slices, check slices, and read files out of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from _bundle.manifest import CHUNK_BYTES, BundleError, Manifest, Piece, digest

_NAMED = 5
"""Slices that a message names; it counts the others."""
PARTIAL = ".partial"
"""File that is being unpacked. No file of a bundle can have this name."""


Parts = Sequence[tuple[Piece, Path]]
"""Pieces of one stream of bytes, in order, with the files that have them."""


def write(files: Parts, folder: Path, slice_bytes: int, progress: Callable[[str], None]) -> tuple[Piece, ...]:
    """Write the files' bytes as slices of `slice_bytes`; the last one may be smaller.

    A slice that is already there with the right bytes is kept, so an interrupted run continues. Slices of an earlier
    bundle are removed.
    """
    total = sum(piece.size for piece, _ in files)
    slices = []
    for number, start in enumerate(range(0, total, slice_bytes)):
        progress(f"writing slice {number + 1} of {-(-total // slice_bytes)}")
        slices.append(_write_one(folder / f"slice.{number:04d}", files, start, min(slice_bytes, total - start)))
    for path in folder.glob("slice.*"):
        if path.name not in {one.name for one in slices}:
            path.unlink()
    return tuple(slices)


def _write_one(path: Path, files: Parts, start: int, size: int) -> Piece:
    if path.exists() and path.stat().st_size == size:
        sha = hashlib.sha256()
        for chunk in read_range(files, start, size):
            sha.update(chunk)
        if digest(path) == sha.hexdigest():
            return Piece(path.name, size, sha.hexdigest())
    partial = path.with_name(f"{path.name}.partial")
    return Piece(path.name, size, _write_whole(path, partial, read_range(files, start, size)))


def _write_whole(path: Path, partial: Path, chunks: Iterator[bytes]) -> str:
    """Write a file, as `partial` until all of it is there; return its SHA-256."""
    sha = hashlib.sha256()
    with partial.open("wb") as out:
        for chunk in chunks:
            sha.update(chunk)
            out.write(chunk)
    partial.replace(path)
    return sha.hexdigest()


def verify(manifest: Manifest, folder: Path, progress: Callable[[str], None]) -> None:
    """Check that all slices are there and unchanged. Raises BundleError, which names the slices to copy again."""
    missing = [one.name for one in manifest.slices if not (folder / one.name).is_file()]
    if missing:
        raise BundleError(
            f"{len(missing)} of {len(manifest.slices)} slices are not in {folder}: {_listed(missing)}; copy them there"
        )
    for one in manifest.slices:
        size = (folder / one.name).stat().st_size
        if size != one.size:
            raise BundleError(f"{folder / one.name} has {size:,} bytes instead of {one.size:,}: copy it again")
    for number, one in enumerate(manifest.slices, start=1):
        progress(f"checking slice {number} of {len(manifest.slices)}")
        if digest(folder / one.name) != one.sha256:
            raise BundleError(f"{folder / one.name} does not have the SHA-256 of the manifest: copy it again")


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def extract(manifest: Manifest, folder: Path, to: Path, progress: Callable[[str], None]) -> None:
    """Write the files below `to`. A file that is there with the right bytes is kept. Raises BundleError, OSError."""
    parts = [(one, folder / one.name) for one in manifest.slices]
    partial = to / PARTIAL
    start = 0
    for number, piece in enumerate(manifest.files, start=1):
        progress(f"unpacking file {number} of {len(manifest.files)}")
        path = to / piece.name
        if not is_there(path, piece):
            path.parent.mkdir(parents=True, exist_ok=True)
            if _write_whole(path, partial, read_range(parts, start, piece.size)) != piece.sha256:
                path.unlink()
                raise BundleError(f"{piece.name} does not have the SHA-256 of the manifest: make the bundle again")
            path.chmod(0o755 if piece.executable else 0o644)
        start += piece.size
    partial.unlink(missing_ok=True)


def is_there(path: Path, piece: Piece) -> bool:
    """Return whether a file has the bytes of the manifest."""
    return path.is_file() and path.stat().st_size == piece.size and digest(path) == piece.sha256


def read_range(parts: Parts, start: int, size: int) -> Iterator[bytes]:
    """Yield `size` bytes of the stream from the offset `start`. Raises BundleError where a file is too short."""
    for piece, path in parts:
        if size == 0:
            return
        if start >= piece.size:
            start -= piece.size
            continue
        left = min(size, piece.size - start)
        size -= left
        with path.open("rb") as file:
            file.seek(start)
            while left:
                chunk = file.read(min(left, CHUNK_BYTES))
                if not chunk:
                    raise BundleError(f"{path} became shorter while it was read: run this again")
                left -= len(chunk)
                yield chunk
        start = 0
