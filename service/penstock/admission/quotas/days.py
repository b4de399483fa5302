"""What was spent per caller and UTC day, in ticks of 1e-10 USD, where a crash cannot lose it.

A call's worst case is charged before it runs, and what it did not use is given back when it ends. So a service that is
killed leaves the calls in flight charged at their worst case, and every call that had ended exactly.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol, TextIO, TypeVar

from penstock.errors import ConfigError, Overloaded
from penstock.files import why_not_written

log = logging.getLogger(__name__)
T = TypeVar("T")
# Days that stay readable after they ended; nothing is decided by them.
_KEPT_DAYS = 35
_SCHEMA = """
CREATE TABLE IF NOT EXISTS spent (
    caller TEXT, day TEXT, ticks INTEGER NOT NULL, doubtful_ticks INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (caller, day)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS flight (
    call TEXT PRIMARY KEY, caller TEXT NOT NULL, day TEXT NOT NULL, ticks INTEGER NOT NULL
) WITHOUT ROWID;
"""


class DailyBudget(Protocol):
    async def reserve(self, caller: str, day: str, call: str, ticks: int, most_ticks: int) -> bool:
        """Charges the worst case where `most_ticks` still hold with it, else nothing."""
        ...

    async def settle(self, caller: str, day: str, call: str, reserved_ticks: int, used_ticks: int) -> None:
        """Gives back what `call` did not use, on the day that it was reserved for."""
        ...

    async def spent(self, caller: str, day: str) -> int:
        """Ticks, with what is reserved."""
        ...

    async def close(self) -> None: ...


class SqliteDailyBudget:
    """In one file, on a thread of its own; commits are in the kernel's hands before a call goes on."""

    def __init__(self, path: Path) -> None:
        """Raises ConfigError where the file cannot be had, or another service has it."""
        self._path = path
        self._lock = _lock(path)
        self._thread = ThreadPoolExecutor(1, "quotas")
        try:
            self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            # WAL: a commit survives the process. Only a machine that loses its power may lose the last ones.
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=NORMAL")
            self._database.executescript(_SCHEMA)
            self._mark_unsettled()
        except sqlite3.Error as error:
            self._lock.close()
            raise ConfigError(f"quotas.daily_file: {why_not_written(path, error)}") from error

    def _mark_unsettled(self) -> None:
        """What was in flight when the last service was killed stays charged; that it is doubtful is kept beside it."""
        with self._database as database:
            database.execute("BEGIN IMMEDIATE")
            calls, ticks = database.execute("SELECT count(*), coalesce(sum(ticks), 0) FROM flight").fetchone()
            database.execute(
                "UPDATE spent SET doubtful_ticks = doubtful_ticks + coalesce((SELECT sum(flight.ticks) FROM flight "
                "WHERE flight.caller = spent.caller AND flight.day = spent.day), 0)"
            )
            database.execute("DELETE FROM flight")
            oldest = (datetime.now(UTC) - timedelta(days=_KEPT_DAYS)).date().isoformat()
            database.execute("DELETE FROM spent WHERE day < ?", (oldest,))
        if calls:
            log.warning("%d calls were in flight when the service was killed: %d ticks stay charged", calls, ticks)

    async def _do(self, work: Callable[[], T]) -> T:
        # Shielded: a call that is cancelled must not leave half of this undone.
        try:
            return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._thread, work))
        except sqlite3.Error as error:
            log.error("quotas.daily_file: %s", why_not_written(self._path, error))
            raise Overloaded(
                "the counts of quotas cannot be written", resource="quota_counts", retry_after_seconds=1.0
            ) from error

    async def reserve(self, caller: str, day: str, call: str, ticks: int, most_ticks: int) -> bool:
        def work() -> bool:
            with self._database as database:
                database.execute("BEGIN IMMEDIATE")
                if self._spent(caller, day) + ticks > most_ticks:
                    return False
                self._add(caller, day, ticks)
                database.execute("INSERT INTO flight VALUES (?, ?, ?, ?)", (call, caller, day, ticks))
            return True

        return await self._do(work)

    async def settle(self, caller: str, day: str, call: str, reserved_ticks: int, used_ticks: int) -> None:
        def work() -> None:
            with self._database as database:
                database.execute("BEGIN IMMEDIATE")
                if database.execute("DELETE FROM flight WHERE call = ?", (call,)).rowcount:
                    self._add(caller, day, used_ticks - reserved_ticks)

        await self._do(work)

    async def spent(self, caller: str, day: str) -> int:
        return await self._do(lambda: self._spent(caller, day))

    def _spent(self, caller: str, day: str) -> int:
        row = self._database.execute("SELECT ticks FROM spent WHERE caller = ? AND day = ?", (caller, day)).fetchone()
        return int(row[0]) if row else 0

    def _add(self, caller: str, day: str, ticks: int) -> None:
        self._database.execute(
            "INSERT INTO spent (caller, day, ticks) VALUES (?, ?, ?) "
            "ON CONFLICT (caller, day) DO UPDATE SET ticks = ticks + excluded.ticks",
            (caller, day, ticks),
        )

    async def close(self) -> None:
        await self._do(self._database.close)
        self._thread.shutdown()
        self._lock.close()


def _lock(path: Path) -> TextIO:
    """Held as long as the service lives. Two services on one file would each take the other's calls for dead."""
    try:
        lock = open(path.with_name(f"{path.name}.lock"), "a")  # noqa: SIM115 - it is the lock
    except OSError as error:
        raise ConfigError(f"quotas.daily_file: {why_not_written(path, error)}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise ConfigError(
            f"quotas.daily_file: another service has {path}; replicas share their counts by quotas.redis_url"
        ) from error
    return lock
