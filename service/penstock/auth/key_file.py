"""Change the key file atomically, under a lock, readable by its owner only."""

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
    """Return the entries of a key file.

    Raises:
        ConfigError: The file cannot be read or is not a key file.
    """
    try:
        return keys.parse(str(path), path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error


def change(path: Path, make: Callable[[Entries], Entries]) -> None:
    """Replace the entries of a key file by the result of `make`.

    Args:
        path: The key file; a missing file has no entries.
        make: Gets the present entries and returns the new ones. Its exceptions are passed on.

    Raises:
        ConfigError: The file cannot be read or written.
    """
    try:
        # The lock is a file of its own: the key file is replaced, so a lock on it would not protect its successor.
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
            # Keep owner and mode, so that a service which runs as another user can still read the file.
            status = target.stat()
            os.chmod(partial, status.st_mode & 0o777)
            if (status.st_uid, status.st_gid) != (os.geteuid(), os.getegid()):
                os.chown(partial, status.st_uid, status.st_gid)
        Path(partial).replace(target)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise
