"""A journal on PostgreSQL: one append-only table for all runs, one committed row an entry.

The run is held by an advisory lock of the session that writes, which the server releases when the session ends. So a
driver that lost its session lost the lock, and can write nothing before it has both again.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import psycopg

from evomerge.experiments.journals.address import Address
from evomerge.experiments.journals.server import TIMEOUT, ServerBackend

TABLE = "evomerge_journal"
CREATE = f"""
CREATE TABLE {TABLE} (run text NOT NULL, number bigint NOT NULL, entry text NOT NULL, PRIMARY KEY (run, number))
"""
# Atomic, and none if the number is taken or not the next one.
APPEND = f"""
INSERT INTO {TABLE} (run, number, entry)
SELECT %(run)s, %(number)s, %(entry)s
WHERE %(number)s = (SELECT coalesce(max(number), -1) + 1 FROM {TABLE} WHERE run = %(run)s)
ON CONFLICT DO NOTHING
"""
HOLDER = """
SELECT application_name FROM pg_stat_activity JOIN pg_locks USING (pid)
WHERE locktype = 'advisory' AND granted AND objsubid = 1 AND (classid::bigint << 32) | objid::bigint = %s
"""
END_OTHERS = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = %s AND pid <> pg_backend_pid()
"""
HOLD_ATTEMPTS, LOOK = 20, 0.25  # a killed driver's session ends within these seconds
# Without these, either side would wait for hours for a machine that is gone.
ALIVE = {"keepalives": 1, "keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 4}
SESSION = """
SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 4;
SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'
"""


class PostgreSQLBackend(ServerBackend):
    """The entries of one run on PostgreSQL; the password is libpq's affair (``PGPASSWORD``, ``PGPASSFILE``)."""

    lost: ClassVar[tuple[type[Exception], ...]] = (psycopg.OperationalError, psycopg.InterfaceError)
    refused: ClassVar[tuple[type[Exception], ...]] = (psycopg.Error,)

    def __init__(self, address: Address, folder: Path, is_writer: bool, note: Callable[[str], None]) -> None:
        super().__init__(address, folder, is_writer, note)
        self._connection: psycopg.Connection[tuple[Any, ...]] | None = None
        self._key = int.from_bytes(hashlib.sha256(address.run.encode()).digest()[:8], signed=True)

    def connect(self) -> None:
        """Connect if need be, and hold the run; a writer makes the table if there is none."""
        if self._connection is not None:
            return
        options: dict[str, Any] = {**ALIVE, "connect_timeout": int(TIMEOUT), "tcp_user_timeout": int(TIMEOUT * 2000)}
        connection = psycopg.connect(
            self.address.url, autocommit=True, prepare_threshold=None, application_name=self.holder, **options
        )
        self._connection = connection
        try:
            connection.execute(SESSION)
            if self._is_writer:
                self._make_table(connection)
                self._hold(connection)
        except BaseException:
            self.disconnect()
            raise

    def disconnect(self) -> None:
        """Drop the connection, and so the lock."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(psycopg.Error):
                connection.close()

    def read(self, start: int, count: int) -> list[str]:
        """Return at most so many entries from number ``start`` on."""
        if not self._has_table(self._connected()):
            return []
        rows = self._connected().execute(
            f"SELECT number, entry FROM {TABLE} WHERE run = %s AND number >= %s ORDER BY number LIMIT %s",
            (self.address.run, start, count),
        )
        entries = []
        for expected, (number, entry) in enumerate(rows, start):
            if number != expected:
                raise self.unexpected(number, expected)
            entries.append(entry)
        return entries

    def append(self, number: int, entry: str) -> None:
        """Make ``entry`` the one of this number if it is not there yet."""
        connection, values = self._connected(), {"run": self.address.run, "number": number, "entry": entry}
        if connection.execute(APPEND, values).rowcount == 1:
            return
        there = connection.execute(
            f"SELECT count(*), max(entry) FILTER (WHERE number = %(number)s) FROM {TABLE} WHERE run = %(run)s", values
        ).fetchone()
        assert there is not None
        count, found = there
        if found != entry or count != number + 1:
            raise self.unexpected(number, None if count > number else count)

    def warnings(self) -> list[str]:
        """Return in which way the server might lose entries."""
        setting = self._connected().execute("SELECT current_setting('fsync')").fetchone()
        return ["this PostgreSQL runs with fsync off: a power cut may lose trials"] if setting == ("off",) else []

    def remove(self) -> None:
        """Remove all rows of the run."""
        connection = self._connected()
        if self._has_table(connection):
            connection.execute(f"DELETE FROM {TABLE} WHERE run = %s", (self.address.run,))

    def close(self) -> None:
        """End the session, and so let go of the run."""
        self.disconnect()

    def _connected(self) -> psycopg.Connection[tuple[Any, ...]]:
        assert self._connection is not None
        return self._connection

    def _has_table(self, connection: psycopg.Connection[tuple[Any, ...]]) -> bool:
        return connection.execute("SELECT to_regclass(%s)", (TABLE,)).fetchone() != (None,)

    def _make_table(self, connection: psycopg.Connection[tuple[Any, ...]]) -> None:
        if not self._has_table(connection):
            with suppress(psycopg.errors.DuplicateTable, psycopg.errors.UniqueViolation):  # another run's driver did
                connection.execute(CREATE)

    def _hold(self, connection: psycopg.Connection[tuple[Any, ...]]) -> None:
        """Take the lock, of a session of our own that the server does not know to be dead if need be."""
        connection.execute(END_OTHERS, (self.holder,))
        for _ in range(HOLD_ATTEMPTS):
            if connection.execute("SELECT pg_try_advisory_lock(%s)", (self._key,)).fetchone() == (True,):
                return
            time.sleep(LOOK)
        holder = connection.execute(HOLDER, (self._key,)).fetchone()
        raise self.held(str(holder[0]) if holder else "")
