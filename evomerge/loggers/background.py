"""A tool's logger in a thread of its own: whatever becomes of it, the run goes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from queue import Full, Queue

from evomerge.loggers.base import Ending, Logger, LoggerError, Step

WAITING = 10_000  # steps that may wait for a slow tool; each keeps a trial in memory
QUIET_SECONDS = 2.0


class Background:
    """Logs in the background; the first failure is reported in one line and ends the logging.

    Args:
        title: what the tool is called.
        open_logger: opens the tool's run; called in the thread.
        report: called with lines of text.
        waiting: how many steps may wait; further ones are left out, and counted.
    """

    def __init__(
        self, title: str, open_logger: Callable[[], Logger], report: Callable[[str], None], waiting: int = WAITING
    ) -> None:
        self.title, self._open, self._report = title, open_logger, report
        self._queue: Queue[tuple[int, Callable[[], Step]] | Ending] = Queue(waiting)
        self._over, self._left_out = threading.Event(), 0
        # A daemon: a tool that hangs does not keep the program from ending.
        self._thread = threading.Thread(target=self._work, name=f"evomerge-{title}", daemon=True)
        self._thread.start()

    def log(self, number: int, step: Callable[[], Step]) -> None:
        """Log the step of this number, soon; ``step`` is called in the thread. Takes microseconds, and never waits."""
        if self._over.is_set():
            return
        try:
            self._queue.put_nowait((number, step))
        except Full:
            self._left_out += 1

    def close(self, ending: Ending, seconds: float) -> None:
        """Log the end and wait until all is written or sent, at most so many seconds."""
        deadline = time.monotonic() + seconds
        if not self._over.is_set():
            with suppress(Full):
                self._queue.put(ending, timeout=seconds)
            self._thread.join(min(QUIET_SECONDS, seconds))
        if self._thread.is_alive() and not self._over.is_set():
            rest = max(0.0, deadline - time.monotonic())
            if rest:
                self._report(f"{self.title} still writes or sends; waiting for at most {rest:.0f} s")
                self._thread.join(rest)
        if self._thread.is_alive() and not self._over.is_set():
            self._report(f"warning: {self.title} did not come to an end; what it has not got by now is missing there")
        elif self._left_out:
            self._report(f"warning: {self.title} was too slow: {self._left_out} trials were not logged")
        self._over.set()

    def _work(self) -> None:
        try:
            logger = self._open()
            begin = logger.next_step
            while not self._over.is_set():
                found = self._queue.get()
                if isinstance(found, Ending):
                    logger.close(found)
                    return
                number, step = found
                if number >= begin:
                    logger.log(step())
        except BaseException as error:  # tools even raise SystemExit
            if not self._over.is_set():
                self._report(f"warning: no more is logged to {self.title}: {_line(error)}")
        finally:
            self._over.set()


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    shown = text if len(text) <= 300 else text[:300] + " …"
    if isinstance(error, LoggerError):
        return shown
    return f"{type(error).__name__}: {shown}" if shown else type(error).__name__
