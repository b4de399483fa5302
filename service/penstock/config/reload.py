"""Reload files when they change; the previous content stays in force until the new one is valid."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from penstock.errors import ConfigError

log = logging.getLogger(__name__)
_Stamp = tuple[tuple[int, int, int] | None, ...]


class ReloadableFiles:
    """Reload some files when any of them changes.

    Args:
        paths: The files; None is left out.
        load: Reads all of them. Raises ConfigError for invalid ones.
    """

    def __init__(self, paths: Iterable[Path | None], load: Callable[[], None]) -> None:
        self._paths = tuple(path for path in paths if path is not None)
        self._load = load
        self._stamp = self._read_stamps()
        load()

    def _read_stamps(self) -> _Stamp:
        return tuple(_stamp(path) for path in self._paths)

    def refresh(self) -> bool:
        """Reload changed files, from any thread. Return whether they were reloaded.

        An invalid change is logged once and not applied: a half-written file is followed by another change.
        """
        stamp = self._read_stamps()  # Before the files are read, so that a change meanwhile is seen the next time.
        if stamp == self._stamp:
            return False
        self._stamp = stamp
        names = ", ".join(map(str, self._paths))
        try:
            self._load()
        except ConfigError as error:
            log.error("reload of %s failed, keeping the previous version: %s", names, error.message)
            return False
        log.warning("reloaded %s", names)
        return True


async def watch_for_changes(files: Sequence[ReloadableFiles], every_seconds: float) -> None:
    """Reload files until cancelled. The disk is read on another thread."""
    while True:
        await asyncio.sleep(every_seconds)
        for one in files:
            await asyncio.to_thread(one.refresh)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size


def read_text(key: str, path: Path) -> str:
    """Return the content of the file that the setting `key` names. Raise ConfigError where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{key}: {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise ConfigError(f"{key}: {path} is not UTF-8 text") from None
