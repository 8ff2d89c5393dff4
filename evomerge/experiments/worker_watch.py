"""Who works on what: shown by the display, and written to ``workers.json`` for ``evomerge status`` elsewhere."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from evomerge.reports.progress import WorkerRow

if TYPE_CHECKING:  # Ray comes with it, and `evomerge status` needs none
    from evomerge.workers.states import WorkerState

SHOW_SECONDS = 0.5
WRITE_SECONDS = 2.0


class WorkerNews(NamedTuple):
    """What ``workers.json`` holds, and how many seconds ago that was."""

    age: float
    rows: tuple[WorkerRow, ...]


class WorkerWatch:
    """Asks for the workers' states every now and then, and passes them on.

    Args:
        path: ``workers.json``.
        states: returns the states.
        show: called with what a display shows.
        note: called with lines of text.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        path: Path,
        states: Callable[[], Sequence[WorkerState]],
        show: Callable[[Sequence[WorkerRow]], None],
        note: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path, self._states, self._show, self._note, self._clock = path, states, show, note, clock
        self._shown = self._written = -float("inf")
        self._since: dict[str, float] = {}
        self._complained = False

    def poll(self, label: Callable[[str], str]) -> None:
        """Look, if it is time; costs nothing otherwise.

        Args:
            label: from a recipe's hash to what to call it.
        """
        now = self._clock()
        if now - self._shown < SHOW_SECONDS:
            return
        self._shown = now
        rows = [self._row(state, label, now) for state in self._states()]
        self._show(rows)
        if now - self._written >= WRITE_SECONDS:
            self._written = now
            self._write(rows)

    def close(self) -> None:
        """Take the news back: nobody works any more."""
        self._show([])
        with suppress(OSError):
            self._path.unlink(missing_ok=True)

    def _row(self, state: WorkerState, label: Callable[[str], str], now: float) -> WorkerRow:
        """Return a row; the pace counts from when the worker was first seen to be ready."""
        since = self._since.setdefault(state.name, now) if state.name else now
        return WorkerRow(
            name=state.name,
            node=state.node,
            device=state.device,
            phase=state.phase,
            work=label(state.key) if state.key else "",
            seconds=state.seconds,
            done=state.done,
            failed=state.failed,
            per_minute=60 * state.done / (now - since) if now > since else 0.0,
        )

    def _write(self, rows: Sequence[WorkerRow]) -> None:
        """Replace the file, without waiting for the disk: news that is lost in a power cut is no loss."""
        partial = self._path.with_name(f".{self._path.name}.partial")
        data = {"written": time.time(), "workers": [vars(row) for row in rows]}
        try:
            partial.write_text(json.dumps(data, ensure_ascii=False) + "\n", encoding="utf-8")
            os.replace(partial, self._path)
        except OSError as error:
            if not self._complained:
                self._complained = True
                self._note(f"warning: `evomerge status` shows no workers: {self._path.name} cannot be written: {error}")


@contextmanager
def watching(
    path: Path,
    states: Callable[[], Sequence[WorkerState]],
    show: Callable[[Sequence[WorkerRow]], None],
    note: Callable[[str], None],
) -> Iterator[WorkerWatch]:
    """Give a watch (see there) that is closed at the end, however that comes about."""
    watch = WorkerWatch(path, states, show, note)
    try:
        yield watch
    finally:
        watch.close()


def read_workers(path: Path) -> WorkerNews | None:
    """Return the latest news of a run's workers; None if there are none, or they cannot be read."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        rows = tuple(WorkerRow(**row) for row in data["workers"])
        return WorkerNews(max(0.0, time.time() - float(data["written"])), rows)
    except (OSError, ValueError, KeyError, TypeError):
        return None
