"""Ctrl-C and SIGTERM: the first lets the trials in flight finish, the second stops at once. Both can be resumed."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """Whether the user asked to stop.

    Args:
        note: told once, when the user first asks.
    """

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note, self._count = note, 0

    def stopping(self) -> bool:
        """Whether to ask for no further trials."""
        return self._count > 0

    def install(self) -> None:
        """Handle the signals from now on. To be called again after `ray.init`, which installs handlers of its own."""
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._count += 1
        if self._count > 1:
            raise KeyboardInterrupt
        self._note("stopping after the trials in flight; once more to stop at once")


@contextmanager
def watched(note: Callable[[str], None]) -> Iterator[Interrupts]:
    """Turn SIGINT and SIGTERM into a clean stop while the context lasts (in the main thread only)."""
    interrupts = Interrupts(note)
    previous = {number: signal.getsignal(number) for number in SIGNALS}
    interrupts.install()
    try:
        yield interrupts
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in previous.items():
                signal.signal(number, handler)
