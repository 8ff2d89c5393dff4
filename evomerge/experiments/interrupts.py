"""Ctrl-C and SIGTERM: the first lets the trials in flight finish, the second stops at once. Both can be resumed."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupts:
    """Whether the user asked to stop."""

    def __init__(self) -> None:
        self.count = 0

    def stopping(self) -> bool:
        """Whether to ask for no further trials."""
        return self.count > 0

    def abandon(self) -> None:
        """Raise KeyboardInterrupt once the user asked twice."""
        if self.count > 1:
            raise KeyboardInterrupt


@contextmanager
def watched(note: Callable[[str], None]) -> Iterator[Interrupts]:
    """Turn SIGINT and SIGTERM into a clean stop while the context lasts (in the main thread only)."""
    interrupts = Interrupts()

    def handle(number: int, frame: FrameType | None) -> None:
        interrupts.count += 1
        if interrupts.count == 1:
            note("stopping after the trials in flight; once more to stop at once")

    if threading.current_thread() is not threading.main_thread():
        yield interrupts
        return
    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupts
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
