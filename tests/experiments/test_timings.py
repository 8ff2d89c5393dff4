"""Laps: the driver's own time and its waiting, which add up to the whole."""

from __future__ import annotations

import pytest

from evomerge.experiments.timings import Lap, Laps


def test_laps_split_the_time_and_add_up_to_it() -> None:
    now, waited = 100.0, 5.0
    laps = Laps(lambda: waited, lambda: now)
    found = []
    for work, wait in ((1.0, 2.0), (0.25, 0.0), (3.0, 7.5)):
        now, waited = now + work + wait, waited + wait
        found.append(laps.lap())
    assert found == [Lap(1.0, 2.0), Lap(0.25, 0.0), Lap(3.0, 7.5)]
    assert sum(map(sum, found)) == pytest.approx(now - 100.0)


def test_what_came_before_a_restart_is_forgotten() -> None:
    now, waited = 0.0, 0.0
    laps = Laps(lambda: waited, lambda: now)
    now, waited = 50.0, 20.0
    laps.restart()
    now, waited = 53.0, 21.0
    assert laps.lap() == Lap(2.0, 1.0)
