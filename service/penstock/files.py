"""Write files completely or not at all, and describe why that failed."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from penstock.errors import PenstockError

_SPACE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class FileNotWritten(PenstockError):
    """Report a file that could not be written, with path, cause and free space."""


@contextmanager
def replacing(path: Path, needed_bytes: int | None = None) -> Iterator[Path]:
    """Yield a file to write beside `path`, which replaces `path` once it is complete.

    Where writing fails, `path` stays unchanged and nothing else is left. Paths that are no regular file, such as
    /dev/stdout, and paths in a directory that cannot be written, are written in place. The file that is yielded has the
    suffix of `path`. Raise FileNotWritten for errors of the operating system.
    """
    partial = path if _is_in_place(path) else _beside(path.resolve())
    try:
        yield partial
        if partial is not path:
            if path.exists():
                shutil.copymode(path, partial)
            partial.replace(path.resolve())
    except OSError as error:
        raise FileNotWritten(why_not_written(path, error, needed_bytes)) from error
    finally:
        if partial is not path:
            with suppress(OSError):
                partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, completely or not at all. Raise FileNotWritten."""
    content = text.encode()
    with replacing(path, len(content)) as partial:
        partial.write_bytes(content)


def why_not_written(path: Path, error: Exception, needed_bytes: int | None = None) -> str:
    """Return one line: the path, the cause, and how much is needed and free."""
    why = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return f"{path} cannot be written: {why}{_room(path, needed_bytes) if is_of_space(error) else ''}"


def _room(path: Path, needed_bytes: int | None) -> str:
    room = [f"{size(needed_bytes)} needed"] if needed_bytes is not None else []
    free = free_bytes(path)
    room += [f"{size(free)} free"] if free is not None else []
    return f" ({', '.join(room)})" if room else ""


def is_of_space(error: Exception) -> bool:
    """Return whether an error is about a full disk or a limit; SQLite and Rust keep only the text of such an error."""
    said = str(error)
    in_words = "is full" in said or any(f"os error {number})" in said for number in _SPACE_ERRORS)
    return in_words or getattr(error, "errno", None) in _SPACE_ERRORS


def why_not_writable(path: Path) -> str:
    """Return why `path` cannot be created or replaced; empty where it can. To be called before long work."""
    parent = path.absolute().parent
    if not parent.is_dir():
        return f"{path.parent} is not a directory"
    if path.is_dir():
        return f"{path} is a directory"
    if not os.access(path if path.exists() else parent, os.W_OK):
        return f"{path} cannot be written: permission denied"
    if not _is_in_place(path) and free_bytes(path) == 0:
        return f"{path} cannot be written: no space left on device"
    return ""


def free_bytes(path: Path) -> int | None:
    """Return how much an unprivileged user may still write at `path`; None where that is unknown."""
    with suppress(OSError):
        there = next(one for one in (path, *path.absolute().parents) if one.exists())
        return shutil.disk_usage(there).free
    return None


def size(number: int) -> str:
    """Return a number of bytes as text: `812 bytes`, `1.5 MB`, `402.1 GB`."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= scale:
            return f"{number / scale:.1f} {unit}"
    return f"{number} bytes"


def _is_in_place(path: Path) -> bool:
    if path.absolute().parts[1:2] in (("dev",), ("proc",)) or (path.exists() and not path.is_file()):
        return True
    return path.is_file() and not os.access(path.resolve().parent, os.W_OK)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
