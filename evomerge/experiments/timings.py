"""What the driver of a run spends its time on: with its own work, or waiting for workers."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

Clock = Callable[[], float]


class Lap(NamedTuple):
    """Seconds since the lap before: the driver's own, and those that it waited for workers."""

    driver: float
    wait: float


class Laps:
    """Splits the driver's time between two trials; all laps of a session add up to its search.

    Args:
        waited: returns the seconds waited for workers so far.
        clock: seconds that only grow.
    """

    def __init__(self, waited: Callable[[], float], clock: Clock = time.monotonic) -> None:
        self._total, self._clock = waited, clock
        self.restart()

    def restart(self) -> None:
        """Begin a lap now."""
        self._began, self._waited = self._clock(), self._total()

    def lap(self) -> Lap:
        """End a lap and begin the next."""
        now, waited = self._clock(), self._total()
        wait = waited - self._waited
        found = Lap(max(0.0, now - self._began - wait), wait)
        self._began, self._waited = now, waited
        return found
