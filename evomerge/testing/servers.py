"""Redis and PostgreSQL servers of one's own, for tests: started on a free port, stopped and started again at will."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import psutil

STARTING = 30.0  # seconds
ACCOUNT = "postgres"  # PostgreSQL refuses to run as root; Debian's package makes this account


class MissingServer(Exception):
    """A server's program is not on this machine."""


class Server:
    """A server process that keeps its data when it is stopped.

    Args:
        command: what starts it.
        url: what clients call it.
        is_ready: whether it answers.
        user: whose process it is; None for this process's own.
    """

    def __init__(self, command: Sequence[str], url: str, is_ready: Callable[[], bool], user: str | None = None) -> None:
        self.url, self._command, self._is_ready, self._user = url, command, is_ready, user
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "stdin": subprocess.DEVNULL}
        self._process = subprocess.Popen(self._command, user=self._user, **quiet)  # type: ignore[call-overload]
        deadline = time.monotonic() + STARTING
        while time.monotonic() < deadline:
            if self._is_ready():
                return
            if self._process.poll() is not None:
                break
            time.sleep(0.05)
        raise RuntimeError(f"{self._command[0]} did not start")

    def stop(self) -> None:
        """Kill it, as a power cut does, with its sessions: those of PostgreSQL outlive their parent a while."""
        if self._process is not None:
            with suppress(psutil.NoSuchProcess):
                family = psutil.Process(self._process.pid)
                members = [family, *family.children(recursive=True)]
                for member in members:
                    with suppress(psutil.NoSuchProcess):
                        member.kill()
                psutil.wait_procs(members[1:], timeout=STARTING)
            self._process.wait()
            self._process = None


@contextmanager
def redis_server(*options: str) -> Iterator[Server]:
    """Run a durable Redis; ``options`` are those of ``redis-server``.

    Raises:
        MissingServer: it is not installed.
    """
    program = shutil.which("redis-server")
    if program is None:
        raise MissingServer("redis-server is not installed (Debian: apt-get install redis-server)")
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="evomerge-redis-") as folder:
        durable = ["--appendonly", "yes", "--appendfsync", "always", "--save", ""]
        place = ["--port", str(port), "--bind", "127.0.0.1", "--dir", folder]
        command = [program, *place, *durable, *options]
        yield from _running(Server(command, f"redis://127.0.0.1:{port}/0", partial(_redis_answers, port)))


@contextmanager
def postgresql_server(password: str = "") -> Iterator[Server]:
    """Run a PostgreSQL whose user and database are ``evomerge``.

    Args:
        password: that it asks for; it trusts everyone if there is none.

    Raises:
        MissingServer: it is not installed.
    """
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    if not found:
        raise MissingServer("PostgreSQL is not installed in /usr/lib/postgresql (Debian: apt-get install postgresql)")
    port, user = free_port(), ACCOUNT if os.geteuid() == 0 else None
    with tempfile.TemporaryDirectory(prefix="evomerge-postgresql-") as folder:
        secret, data = Path(folder) / "password", f"{folder}/data"
        secret.write_text(password, encoding="utf-8")
        if user is not None:
            shutil.chown(folder, user)
            shutil.chown(secret, user)
        checks = ["-A", "scram-sha-256", "--pwfile", str(secret)] if password else ["-A", "trust"]
        initialise = [str(found[-1] / "initdb"), "-D", data, "-U", "evomerge", "--no-sync", *checks]
        subprocess.run(initialise, user=user, check=True, capture_output=True, cwd=folder)
        place = ["-D", data, "-p", str(port), "-h", "127.0.0.1", "-k", folder]
        url = f"postgresql://evomerge@127.0.0.1:{port}/postgres"
        asking = [str(found[-1] / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port)]
        ready = partial(_succeeds, asking)
        yield from _running(Server([str(found[-1] / "postgres"), *place], url, ready, user))


def free_port() -> int:
    """Return a port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _redis_answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            return not connection.recv(64).startswith(b"-LOADING")
    except OSError:
        return False


def _succeeds(command: Sequence[str]) -> bool:
    return subprocess.run(command, check=False).returncode == 0


def _running(server: Server) -> Iterator[Server]:
    try:
        server.start()
        yield server
    finally:
        server.stop()
