"""Count the cost per caller and UTC day, in ticks of 1e-10 USD, so that a crash loses nothing.

The worst-case cost of a call is charged before it runs, and the unused part is refunded when it ends. A service that is
killed therefore leaves the calls in flight charged at their worst case; all calls that had ended are charged exactly.
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
# Number of days that are kept after they ended, for reports only.
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
    """Count cost per caller and day. `day` is an ISO date in UTC; amounts are ticks of 1e-10 USD."""

    async def reserve(self, caller: str, day: str, call: str, ticks: int, most_ticks: int) -> bool:
        """Charge the worst-case cost of a call.

        Args:
            caller: Id of the caller.
            day: ISO date, in UTC.
            call: Id of the call, unique over all calls.
            ticks: Worst-case cost.
            most_ticks: The caller's limit per day.

        Returns:
            Whether the cost was charged; False where it would exceed the limit.

        Raises:
            Overloaded: The counts cannot be written.
        """
        ...

    async def settle(self, caller: str, day: str, call: str, reserved_ticks: int, used_ticks: int) -> None:
        """Refund what a call did not use, on the day that it was reserved for.

        Raises:
            Overloaded: The counts cannot be written.
        """
        ...

    async def spent(self, caller: str, day: str) -> int:
        """Return the cost of a day, reservations included.

        Raises:
            Overloaded: The counts cannot be read.
        """
        ...

    async def close(self) -> None:
        """Release the store."""
        ...


class SqliteDailyBudget:
    """Keep the counts in one SQLite file, written by a thread of its own.

    A call goes on once its commit has been handed to the kernel.

    Raises:
        ConfigError: The file cannot be opened, or another service uses it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = _lock(path)
        self._thread = ThreadPoolExecutor(1, "quotas")
        try:
            self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            # WAL: a commit survives the process. Only a power failure may lose the last commits.
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=NORMAL")
            self._database.executescript(_SCHEMA)
            self._mark_unsettled()
        except sqlite3.Error as error:
            self._lock.close()
            raise ConfigError(f"quotas.daily_file: {why_not_written(path, error)}") from error

    def _mark_unsettled(self) -> None:
        """Keep calls charged that were in flight when the last service was killed, and count them as doubtful."""
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
            log.warning(
                "quotas: %d calls were in flight when the service was killed; %d ticks stay charged", calls, ticks
            )

    async def _do(self, work: Callable[[], T]) -> T:
        # Shielded: the cancellation of a call must not leave a half-finished change.
        try:
            return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._thread, work))
        except sqlite3.Error as error:
            log.error("write of quotas.daily_file failed: %s", why_not_written(self._path, error))
            raise Overloaded(
                "quota counts cannot be written; retry later", resource="quota_counts", retry_after_seconds=1.0
            ) from error

    async def reserve(self, caller: str, day: str, call: str, ticks: int, most_ticks: int) -> bool:
        """Charge the worst-case cost of a call; see `DailyBudget.reserve`."""

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
        """Refund what a call did not use; see `DailyBudget.settle`."""

        def work() -> None:
            with self._database as database:
                database.execute("BEGIN IMMEDIATE")
                if database.execute("DELETE FROM flight WHERE call = ?", (call,)).rowcount:
                    self._add(caller, day, used_ticks - reserved_ticks)

        await self._do(work)

    async def spent(self, caller: str, day: str) -> int:
        """Return the cost of a day, reservations included."""
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
        """Close the file and end its thread."""
        await self._do(self._database.close)
        self._thread.shutdown()
        self._lock.close()


def _lock(path: Path) -> TextIO:
    """Lock the file while the service lives: a second one would take the first one's calls for unsettled."""
    try:
        lock = open(path.with_name(f"{path.name}.lock"), "a")  # noqa: SIM115 - it is the lock
    except OSError as error:
        raise ConfigError(f"quotas.daily_file: {why_not_written(path, error)}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise ConfigError(
            f"quotas.daily_file: {path} is in use by another service; replicas share counts by quotas.redis_url"
        ) from error
    return lock
