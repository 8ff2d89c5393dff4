"""Responses on disk: every evaluation of one part of a run, a line each, kept as soon as it comes in.

One file rather than a file a recipe: a line is appended and flushed in half the time that making and renaming a file
takes, and a run of a hundred thousand trials does not fill the file system with a hundred thousand files.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

from evomerge.errors import RunError
from evomerge.experiments import lines
from evomerge.experiments.journals.address import fsync_folder
from evomerge.workers import Outcome

SUFFIX = ".jsonl"
_TEXT = rb'"(?:[^"\\]|\\.)*"'
_BEGIN = re.compile(rb'\{"recipe":(%s),"items":(%s|null),' % (_TEXT, _TEXT))
_RESPONSES = ',"responses":'  # within strings of JSON, quotes are escaped
_FIELDS = tuple(each.name for each in fields(Outcome) if each.name not in ("responses", "missing"))


class ResponseStore:
    """The stored responses of one part of a run; others may read while one process writes.

    Args:
        folder: of the run's responses.
        part: ``search``, ``confirmation`` or ``calibration``.
        digest: of the items that may be asked; what was stored with others is not used. None takes any.
    """

    def __init__(self, folder: Path, part: str, digest: str | None = None) -> None:
        self.path = folder / f"{part}{SUFFIX}"
        self._digest = digest
        self._begins: dict[str, int] = {}  # of the last line of each recipe
        self._end = 0  # up to which the file is known

    def __iter__(self) -> Iterator[str]:
        """Return the hashes of the recipes, in the order in which they were first stored."""
        self._look()
        return iter(list(self._begins))

    def read(self, recipe_hash: str) -> Outcome | None:
        """Return the stored outcome; None if there is none that can be read."""
        self._look()
        if recipe_hash not in self._begins:
            return None
        try:
            with self.path.open("rb") as file:
                file.seek(self._begins[recipe_hash])
                line = file.readline().decode()
            facts, _, responses = line.rstrip("\n").partition(_RESPONSES)
            data = json.loads(facts + "}")
            json.loads(responses[:-1])
            return Outcome(responses[:-1], **{name: data[name] for name in _FIELDS})
        except (OSError, ValueError, KeyError):
            return None

    def write(self, recipe_hash: str, outcome: Outcome) -> None:
        """Store a successful outcome, durably.

        Raises:
            RunError: it cannot be written, for instance because the disk is full.
        """
        facts = {"recipe": recipe_hash, "items": self._digest} | {name: getattr(outcome, name) for name in _FIELDS}
        text = json.dumps(facts, ensure_ascii=False, separators=(",", ":"))
        line = f"{text[:-1]}{_RESPONSES}{outcome.responses}}}\n".encode()
        self._look()
        try:
            if not self._end and not self.path.exists():
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self.path.touch()
                fsync_folder(self.path.parent)
            begin = lines.append(str(self.path), line)
        except OSError as error:
            raise RunError(f"cannot write {self.path}: {error}; free some space, then resume the run") from error
        self._begins[recipe_hash], self._end = begin, begin + len(line)

    def _look(self) -> None:
        """Take in the lines that have been added."""
        try:
            size = os.stat(self.path).st_size
        except OSError:
            size = 0
        if size < self._end:  # removed, or begun anew
            self._begins, self._end = {}, 0
        if size == self._end:
            return
        wanted = None if self._digest is None else json.dumps(self._digest, ensure_ascii=False).encode()
        with self.path.open("rb") as file:
            file.seek(self._end)
            for line in file:
                if not line.endswith(b"\n"):
                    break  # being written, or torn
                begin = _BEGIN.match(line)
                if begin and wanted in (None, begin[2]):
                    self._begins[json.loads(begin[1])] = self._end
                self._end += len(line)
