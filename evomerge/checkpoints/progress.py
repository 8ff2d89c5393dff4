"""What a merge that was stopped has already written: a small record that outlives a kill and a crash."""

from __future__ import annotations

import json
import os
from pathlib import Path

_BOOT = Path("/proc/sys/kernel/random/boot_id")


class Progress:
    """The names of the tensors that are complete on disk, one line each, under the identity of the merge.

    Lines are appended without waiting for the disk. What a killed process has written is not lost: the system still
    holds it. Only when the machine itself went down since are the lines after the last ``synced`` not trusted.

    Args:
        file: the record; made when missing.
        identity: what the merge is; the record of another one is not trusted at all.

    Attributes:
        done: names of the tensors that are complete.
    """

    def __init__(self, file: Path, identity: str) -> None:
        self._file = file
        self._head = {"identity": identity, "boot": _boot()}
        self.done: set[str] = set()
        self._read()

    def begin(self, done: set[str]) -> None:
        """Start the record anew with these tensors; whoever reads it sees the old one or this one."""
        self.done = set(done)
        partial = self._file.with_suffix(".new")
        lines = [self._head, *({"tensor": name} for name in sorted(done)), {"synced": len(done)}]
        partial.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
        sync(partial)
        partial.replace(self._file)
        sync(self._file.parent)

    def add(self, name: str) -> None:
        """Note that a tensor is complete."""
        self._append({"tensor": name})
        self.done.add(name)

    def synced(self) -> None:
        """Note that the disk holds every tensor that was added so far."""
        self._append({"synced": len(self.done)})
        sync(self._file)

    def _append(self, line: dict[str, object]) -> None:
        with self._file.open("ab") as stream:  # one write, at the end: a kill leaves the whole line or a torn last one
            stream.write(f"{json.dumps(line)}\n".encode())

    def _read(self) -> None:
        try:
            text = self._file.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return
        lines = []
        for line in text.splitlines(keepends=True):
            try:
                lines.append(json.loads(line if line.endswith("\n") else ""))
            except ValueError:
                break  # torn by a kill or a crash
        if not lines or lines[0].get("identity") != self._head["identity"]:
            return
        if self._head["boot"] is None or lines[0].get("boot") != self._head["boot"]:
            synced = [number for number, line in enumerate(lines) if "synced" in line]
            lines = lines[: synced[-1]] if synced else []
        self.done = {line["tensor"] for line in lines if "tensor" in line}


def _boot() -> str | None:
    """Return an id of this start of the system, None where there is none."""
    try:
        return _BOOT.read_text(encoding="ascii").strip()
    except OSError:
        return None


def sync(path: Path) -> None:
    """Wait until the disk holds a file or folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
