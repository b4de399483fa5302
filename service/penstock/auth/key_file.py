"""Changing the key file: whole or not at all, one change at a time, readable by its owner alone."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from penstock.auth import api_keys as keys
from penstock.config.security import ApiKey
from penstock.errors import ConfigError
from penstock.files import why_not_written

Entries = tuple[ApiKey, ...]


def entries(path: Path) -> Entries:
    """Raises ConfigError where it cannot be read."""
    try:
        return keys.parse(str(path), path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error


def change(path: Path, make: Callable[[Entries], Entries]) -> None:
    """Replaces the file's entries by what `make` makes of them; a file that is not there has none.

    Raises ConfigError where the file cannot be read or written, and whatever `make` does.
    """
    try:
        # Another file than the one that is replaced: a lock on that would hold nobody off the new one.
        with open(path.with_name(f".{path.name}.lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            _replace(path, keys.to_text(make(entries(path) if path.exists() else ())))
    except OSError as error:
        raise ConfigError(why_not_written(path, error)) from error


def _replace(path: Path, text: str) -> None:
    target = path.resolve()
    handle, partial = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")  # made with mode 0600
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            # A service that runs as another user of a group goes on reading it.
            status = target.stat()
            os.chmod(partial, status.st_mode & 0o777)
            if (status.st_uid, status.st_gid) != (os.geteuid(), os.getegid()):
                os.chown(partial, status.st_uid, status.st_gid)
        Path(partial).replace(target)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise
