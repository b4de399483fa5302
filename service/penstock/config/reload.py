"""Files that are read again when they change, while what was read before stays in force until the new is good."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from penstock.errors import ConfigError

log = logging.getLogger(__name__)
_Stamp = tuple[tuple[int, int, int] | None, ...]


class ReloadableFiles:
    """Some files and what to do when any of them changes. `take` reads them; it raises ConfigError for bad ones."""

    def __init__(self, paths: Iterable[Path | None], load: Callable[[], None]) -> None:
        self._paths = tuple(path for path in paths if path is not None)
        self._load = load
        self._stamp = self._read_stamps()
        load()

    def _read_stamps(self) -> _Stamp:
        return tuple(_stamp(path) for path in self._paths)

    def refresh(self) -> bool:
        """Takes changed files up, from any thread; True where that was done. A bad change is logged once, and not
        taken: a half-written file is followed by another change."""
        stamp = self._read_stamps()  # Before reading: what changes meanwhile is seen the next time.
        if stamp == self._stamp:
            return False
        self._stamp = stamp
        names = ", ".join(map(str, self._paths))
        try:
            self._load()
        except ConfigError as error:
            log.error("%s changed, and is not taken up: %s", names, error.message)
            return False
        log.warning("%s changed, and is in force", names)
        return True


async def watch_for_changes(files: Sequence[ReloadableFiles], every_seconds: float) -> None:
    """Runs as long as the server does; the disk is read on another thread."""
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
    """The file that the configuration's `key` names. Raises ConfigError."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{key}: {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise ConfigError(f"{key}: {path} is not text") from None
