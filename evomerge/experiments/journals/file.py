"""A journal in a file: whole lines, each on the disk before it counts.

Optuna's backend, but for what happens when a write fails half way: the torn part is cut off at once, and again before
the next line, so that no line is ever appended to half a line.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

from evomerge.errors import RunError
from evomerge.experiments import lines
from evomerge.experiments.journals.address import fsync_folder


class FileBackend(JournalFileBackend):
    """The lines of a journal file, which is made if need be."""

    def __init__(self, path: Path) -> None:
        self._writers = JournalFileSymlinkLock(str(path))  # dashboards may write notes
        is_new = not path.exists()
        super().__init__(str(path), self._writers)
        if is_new:
            fsync_folder(path.parent)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append entries durably, or leave the file as it was.

        Raises:
            RunError: they could not be written, for instance because the disk is full.
        """
        data = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode()
        try:
            with self._locked():
                lines.append(self._file_path, data)
        except OSError as error:
            raise RunError(
                f"cannot write to {self._file_path}: {error}; free some space, then resume the run"
            ) from error

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._writers.acquire()
        try:
            yield
        finally:
            with suppress(RuntimeError):  # taken away, as a killed writer's is
                self._writers.release()


def repair(path: Path) -> int:
    """Cut off what a crash left after the last durable line; return the number of bytes.

    Each line is on the disk before the next is begun, so a crash can tear the last one alone. Depending on the file
    system it is then short, or holds zeros or another file's bytes, line breaks among them. Lines that cannot be read
    but are followed by one that can are damage of another kind, and are left for the reader to refuse; so is a file
    without a single readable line. Removes the lock of a killed writer too; the caller holds the run's lock.

    Raises:
        OSError: the file cannot be read or written.
    """
    lock = path.with_name(path.name + ".lock")
    if lock.is_symlink() or lock.exists():
        lock.unlink()
    if not path.exists():
        return 0
    with path.open("rb+") as file:
        content = file.read()
        last = end = content.rfind(b"\n") + 1  # `end` goes back over whole lines that cannot be read
        while end and not _is_entry(content[content.rfind(b"\n", 0, end - 1) + 1 : end]):
            end = content.rfind(b"\n", 0, end - 1) + 1
        kept = end or last
        if kept < len(content):
            file.truncate(kept)
            os.fsync(file.fileno())
        return len(content) - kept


def _is_entry(line: bytes) -> bool:
    try:
        entry = json.loads(line)
    except ValueError:
        return False
    return isinstance(entry, dict) and "op_code" in entry
