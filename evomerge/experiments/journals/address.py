"""The address of a journal on a server: which URLs there are, and the line in ``journal.log`` that names one.

A journal at a URL leaves one line in the run folder instead of the trials, so that the folder's path says all.
"""

from __future__ import annotations

import json
import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from evomerge.errors import Problem, RunError

SERVERS = {"redis": "redis", "rediss": "redis", "postgresql": "postgresql", "postgres": "postgresql"}
INSTEAD = {
    "redis": "put it into the environment variable REDISCLI_AUTH",
    "postgresql": "put it into the environment variable PGPASSWORD, or into a file that PGPASSFILE names",
}
FIRST_BYTES = b'{"journal":'


@dataclass(frozen=True)
class Address:
    """A journal on a server: the server's URL, which holds no password, and the run's name there, unique."""

    url: str
    run: str

    @property
    def server(self) -> str:
        """``redis`` or ``postgresql``; also the name of the extra that its driver comes with."""
        return SERVERS[self.url.partition("://")[0]]


def problem_of(url: str, where: str = "journal") -> Problem | None:
    """Return why no journal can lie at ``url``; in words that do not repeat it, as it may hold a password."""
    scheme, separator, _ = url.partition("://")
    server = SERVERS.get(scheme)
    if not separator or server is None:
        what = "the URL of a journal begins with redis://, rediss:// or postgresql://"
        hint = (
            "such as redis://host:6379/0 or postgresql://user@host/database; left out, it is a file in the run folder"
        )
        return Problem(what, where, hint)
    try:
        parts = urlsplit(url)
    except ValueError:
        return Problem("this is not a URL", where)
    secret = "the URL of a journal is written into the run folder, so it must not hold a password"
    if parts.password is not None or any("password" in key.lower() for key, _ in parse_qsl(parts.query, True)):
        return Problem(secret, where, INSTEAD[server])
    if "@" in parts.path + parts.query + parts.fragment:
        return Problem(f"there is an @ after the host; {secret}", where, INSTEAD[server])
    return None


def new_address(url: str, name: str) -> Address:
    """Return an address that no other run has."""
    return Address(url, f"{name}-{uuid.uuid4().hex[:12]}")


def read_address(path: Path) -> Address | None:
    """Return the address that ``journal.log`` names; None if it holds the trials itself, or is not there.

    Raises:
        RunError: it cannot be read, or names no possible address.
    """
    try:
        with path.open("rb") as file:
            if file.read(len(FIRST_BYTES)) != FIRST_BYTES:
                return None
        written = json.loads(path.read_text(encoding="utf-8"))
        address = Address(str(written["journal"]), str(written["run"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError) as error:
        raise RunError(f"cannot read where the journal lies from {path}: {error}") from error
    problem = problem_of(address.url, str(path))
    if problem is not None:
        raise RunError(str(problem))
    return address


def write_address(path: Path, address: Address) -> None:
    """Write the line that ``read_address`` reads, durably: trials at an address that is lost would be lost with it.

    Raises:
        RunError: it cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(json.dumps({"journal": address.url, "run": address.run}) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        fsync_folder(path.parent)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error}; free some space, then start again") from error


def fsync_folder(folder: Path) -> None:
    """Make sure that what was created or renamed in ``folder`` survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
