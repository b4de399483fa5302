"""Write the audit log: who called what, how much it used, and the outcome; never any content.

JSON lines in a rotating file:

    call        one RPC: caller, authentication method, peer, method, status, seconds
    generation  what one generation used, however it ended: caller, id, outcome, tokens, cost
    left_out    number of refused calls that were not logged one by one

Lines are written in order, on a thread of their own. Files older than `keep_days`, and more files than `keep_files`,
are deleted at the start and whenever a new file begins (at the maximum size, and with the first line after midnight
UTC).
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import logging.handlers
import os
import queue
import sys
import time
from datetime import UTC, datetime
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from penstock.config.security import AuditSettings
from penstock.errors import ConfigError
from penstock.files import why_not_written

log = logging.getLogger(__name__)
# Number of lines that may wait for a slow disk; further lines are lost, and that is logged.
_MAX_WAITING = 50_000
_DAY_SECONDS = 86400.0
_MAX_TURNED_AWAY_PER_SECOND = 20


class Audit:
    """Write audit lines. `NO_AUDIT` writes none."""

    def __init__(self, handler: logging.Handler | None = None) -> None:
        self._lines: queue.Queue[Any] = queue.Queue(_MAX_WAITING)
        self._listener = logging.handlers.QueueListener(self._lines, handler) if handler else None
        self._handler = handler
        self._lost = 0
        self._second = self._this_second = self._left_out = 0
        if self._listener is not None:
            self._listener.start()

    @property
    def is_on(self) -> bool:
        """Return whether lines are written."""
        return self._listener is not None

    def write_turned_away(self, event: str, **fields: object) -> None:
        """Write a line about a refused call, up to a number per second, so that refused calls cannot fill the log."""
        now = int(time.monotonic())
        if now != self._second:
            self._second, self._this_second = now, 0
            if self._left_out:
                self.write("left_out", count=self._left_out)
                self._left_out = 0
        self._this_second += 1
        if self._this_second > _MAX_TURNED_AWAY_PER_SECOND:
            self._left_out += 1
        else:
            self.write(event, **fields)

    def write(self, event: str, **fields: object) -> None:
        """Write a line, without waiting. Fields that are None are left out."""
        if self._listener is None:
            return
        said = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event} | fields
        line = json.dumps({name: value for name, value in said.items() if value is not None}, ensure_ascii=False)
        try:
            self._lines.put_nowait(logging.makeLogRecord({"msg": line}))
        except queue.Full:
            self._lost += 1
            if self._lost & (self._lost - 1) == 0:
                log.error("audit log: %d lines lost, the disk is too slow", self._lost)

    def close(self) -> None:
        """Return when every line is written. May be called again."""
        if self._left_out:
            self.write("left_out", count=self._left_out)
        listener, self._listener = self._listener, None
        if listener is not None and self._handler is not None:
            listener.stop()
            self._handler.close()


NO_AUDIT = Audit()


def audit_of(settings: AuditSettings) -> Audit:
    """Return the audit log that the configuration names. Raise ConfigError where its file cannot be written."""
    if settings.file is None:
        return NO_AUDIT
    if str(settings.file) == "-":
        return Audit(logging.StreamHandler(sys.stderr))
    try:
        return Audit(RotatingFile(settings.file, settings))
    except OSError as error:
        raise ConfigError(f"audit.file: {settings.file} cannot be written: {error.strerror}") from error


class RotatingFile(logging.handlers.RotatingFileHandler):
    """Write `audit.jsonl` and rotate it to `.1` (the newest) up to `.<keep_files>`; readable by their owner only."""

    def __init__(self, path: Path, settings: AuditSettings) -> None:
        self._keep_seconds = settings.keep_days * _DAY_SECONDS
        super().__init__(
            path, maxBytes=settings.max_file_bytes, backupCount=settings.keep_files, encoding="utf-8", delay=False
        )
        self._day = _day(path.stat().st_mtime) if path.stat().st_size else _day(time.time())
        self._lost = 0
        self._whole_bytes = path.stat().st_size
        self._purge()

    def _open(self) -> TextIOWrapper:
        opener = functools.partial(os.open, mode=0o600)
        stream = open(self.baseFilename, "a", encoding="utf-8", opener=opener)  # noqa: SIM115 - the handler closes it
        if _ends_inside_a_line(self.baseFilename):
            stream.write("\n")  # End the partial line of a service that was killed.
        return stream

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, and remember where it ends."""
        super().emit(record)
        if self.stream is not None:
            self._whole_bytes = os.fstat(self.stream.fileno()).st_size

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the library's name
        """Count a line that could not be written, and remove the part of it that was. Raises nothing."""
        error = sys.exc_info()[1]
        stream, self.stream = self.stream, None
        if stream is not None:
            with contextlib.suppress(OSError, ValueError):
                stream.close()  # emit opens the file again
        with contextlib.suppress(OSError):
            os.truncate(self.baseFilename, self._whole_bytes)
        self._lost += 1
        if self._lost & (self._lost - 1) == 0 and isinstance(error, Exception):
            why = why_not_written(Path(self.baseFilename), error)
            log.error("audit log: write failed, %d lines lost so far: %s", self._lost, why)

    def shouldRollover(self, record: logging.LogRecord) -> bool:  # noqa: N802 - the library's name
        """Return whether a new file begins: at the maximum size, or on a new day."""
        return self._day != _day(time.time()) or bool(super().shouldRollover(record))

    def doRollover(self) -> None:  # noqa: N802 - the library's name
        """Begin a new file and delete those that are too old."""
        super().doRollover()
        self._day = _day(time.time())
        self._purge()

    def _purge(self) -> None:
        too_old = time.time() - self._keep_seconds
        for number in range(1, self.backupCount + 1):
            path = Path(f"{self.baseFilename}.{number}")
            if path.exists() and path.stat().st_mtime < too_old:
                path.unlink()


def _ends_inside_a_line(path: str) -> bool:
    with open(path, "rb") as content:
        if not content.seek(0, os.SEEK_END):
            return False
        content.seek(-1, os.SEEK_END)
        return content.read(1) != b"\n"


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).date().isoformat()
