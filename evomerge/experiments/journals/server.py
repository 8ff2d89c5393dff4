"""A journal on a server: numbered entries, each appended once, by the one driver that holds the run.

Entries are those of Optuna's ``JournalStorage``, as JSON text; Optuna's own backend for Redis is not used because it
unpickles what it finds there, and because an append that it repeats after a lost answer is there twice.
"""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from abc import abstractmethod
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from optuna.storages.journal import BaseJournalBackend

from evomerge.errors import ConfigError, Problem, RunError
from evomerge.experiments.journals.address import Address

PATIENCE = 60.0  # seconds that a server may be away during a run
FIRST_WAIT, LONGEST_WAIT = 0.5, 10.0
BATCH = 1000  # entries that are read at a time
TIMEOUT = 10.0  # seconds that one answer may take

T = TypeVar("T")


class UnreachableError(RunError):
    """The journal's server does not answer, so what the journal holds is not known."""


class ServerBackend(BaseJournalBackend):
    """The entries of one run.

    Args:
        address: where they are.
        folder: the run's, for messages.
        is_writer: whether to hold the run, and to wait for a server that goes away; a reader does neither.
        note: told what the user should know.
    """

    lost: ClassVar[tuple[type[Exception], ...]]  # what the driver raises when the server is away
    refused: ClassVar[tuple[type[Exception], ...]]  # what it raises besides

    def __init__(self, address: Address, folder: Path, is_writer: bool, note: Callable[[str], None]) -> None:
        self.address, self._folder, self._is_writer, self._note = address, folder, is_writer, note
        self.holder = f"{socket.gethostname()[:24]}:{os.getpid()} {uuid.uuid4().hex[:12]}"
        self._count = 0  # entries that are known to be there
        self._began = False

    def open(self) -> None:
        """Connect, and hold the run if this is its writer.

        Raises:
            UnreachableError: the server does not answer.
            RunError: another driver holds the run, or the server refuses.
        """
        self._patiently(self.connect)
        self._began = self._is_writer

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """Yield the entries from one on."""
        start, is_full = log_number_from, True
        try:
            while is_full:
                batch = self._patiently(partial(self.read, start, BATCH))
                start, is_full = start + len(batch), len(batch) == BATCH
                self._count = max(self._count, start)
                yield from map(json.loads, batch)
        finally:
            if not self._is_writer:  # it may be long before it reads again
                self.disconnect()

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append entries durably, each once even where the answer to the first try was lost.

        Raises:
            UnreachableError: the server is away for longer than a minute.
            RunError: the entry cannot be written, or this is not the run's writer.
        """
        if not self._is_writer:
            raise RunError(f"the journal of {self._folder} was opened for reading")
        for log in logs:
            self._patiently(partial(self.append, self._count, json.dumps(log, separators=(",", ":"))))
            self._count += 1

    @abstractmethod
    def connect(self) -> None:
        """Connect if there is no connection; a writer then holds the run, or raises ``held``."""

    @abstractmethod
    def disconnect(self) -> None:
        """Drop the connection, in whatever state it is."""

    @abstractmethod
    def read(self, start: int, count: int) -> list[str]:
        """Return at most so many entries from number ``start`` on."""

    @abstractmethod
    def append(self, number: int, entry: str) -> None:
        """Make ``entry`` the one of this number if it is not there yet; anything else is ``unexpected``."""

    @abstractmethod
    def warnings(self) -> list[str]:
        """Return in which way the server might lose entries."""

    @abstractmethod
    def remove(self) -> None:
        """Remove all that the server holds of the run."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the run and of the server; never fails."""

    def held(self, holder: str) -> RunError:
        """Return the error for a run that another driver holds."""
        place, _, _ = holder.partition(" ")
        host, _, process = place.rpartition(":")
        who = f"process {process} on {host}" if host else "another process"
        return RunError(
            f"{who} is working on the run of {self._folder}, whose journal is at {self.address.url}; "
            "wait for it, or stop it first"
        )

    def unexpected(self, number: int, there: int | None) -> RunError:
        """Return the error for a journal that is not as this driver left it.

        Args:
            number: of the entry to be written.
            there: how many entries there are; None if that one is there, with another content.
        """
        what = (
            "another driver has written to it"
            if there is None
            else f"its server has lost entries ({there} of {number} are left), so it is not durable"
        )
        return RunError(
            f"the journal at {self.address.url} is not as this run left it: {what}. Responses are kept in "
            f"{self._folder}: see that no other driver runs, then `evomerge resume {self._folder}` goes on from there"
        )

    def _patiently(self, act: Callable[[], T]) -> T:
        """Do something with the server; while a run goes on, again for a minute if the server is away."""
        wait, since = FIRST_WAIT, None
        while True:
            try:
                self.connect()
                done = act()
            except self.lost as error:
                self.disconnect()
                reason, now = _in_a_line(error), time.monotonic()
                if not self._began:
                    raise UnreachableError(
                        f"cannot reach the journal at {self.address.url}: {reason}\n"
                        "start this server, or mend the address or the password"
                    ) from error
                if since is None:
                    since = now
                    self._note(f"the journal's server is away ({reason}); trying again for {PATIENCE:.0f} s")
                if now + wait - since > PATIENCE:
                    raise UnreachableError(
                        f"the journal at {self.address.url} is out of reach since {now - since:.0f} s: {reason}\n"
                        f"no evaluation is lost: once the server is back, go on with `evomerge resume {self._folder}`"
                    ) from error
                time.sleep(wait)
                wait = min(2 * wait, LONGEST_WAIT)
            except self.refused as error:
                raise RunError(
                    f"the server of the journal at {self.address.url} refuses: {_in_a_line(error)} (docs/journal.md)"
                ) from error
            else:
                if since is not None:
                    self._note("the journal's server is back")
                return done


def server_backend(
    address: Address, folder: Path, *, is_writer: bool = False, note: Callable[[str], None] = lambda text: None
) -> ServerBackend:
    """Return the backend for an address, not yet connected.

    Raises:
        ConfigError: the server's driver is not installed.
    """
    try:
        if address.server == "redis":
            from evomerge.experiments.journals.on_redis import RedisBackend

            return RedisBackend(address, folder, is_writer, note)
        from evomerge.experiments.journals.on_postgresql import PostgreSQLBackend

        return PostgreSQLBackend(address, folder, is_writer, note)
    except ImportError as error:
        what = f"a journal at {address.url} needs a driver that cannot be imported ({error})"
        raise ConfigError(Problem(what, "journal", f"pip install 'evomerge[{address.server}]'")) from error


def check_server(url: str) -> None:
    """Check that the server of a journal answers.

    Raises:
        ConfigError: its driver is not installed.
        UnreachableError: it does not answer.
        RunError: it refuses.
    """
    backend = server_backend(Address(url, ""), Path())
    backend.open()
    backend.close()


def _in_a_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
