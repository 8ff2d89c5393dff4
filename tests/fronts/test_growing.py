"""Fronts that grow row by row have the numbers of those computed from scratch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from evomerge.errors import ConfigError
from evomerge.fronts import FrontArchive, FrontMeter, hypervolume, igd_plus, nondominated, spread

STREAMS = st.tuples(st.integers(1, 30), st.integers(1, 5)).flatmap(
    lambda shape: st.tuples(
        arrays(np.float64, shape, elements=st.integers(-1, 6).map(float)),
        st.none() | arrays(np.float64, (4, shape[1]), elements=st.integers(0, 6).map(float)),
    )
)


def cube(rows: int, objectives: int) -> np.ndarray:
    return np.random.default_rng(rows).random((rows, objectives))


def sphere(rows: int, objectives: int) -> np.ndarray:
    points = np.abs(np.random.default_rng(rows).normal(size=(rows, objectives)))
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def check(meter: FrontMeter, seen: np.ndarray, known: np.ndarray | None) -> None:
    """Compare a meter with what all rows seen give."""
    members = np.flatnonzero(nondominated(seen))
    np.testing.assert_array_equal(meter.archive.members, members)
    np.testing.assert_array_equal(meter.archive.gains, seen[members])
    found = meter.quality
    assert found.size == len(meter.archive) == len(members)
    assert found.hypervolume == pytest.approx(hypervolume(seen, meter.archive.reference), rel=1e-9, abs=1e-12)
    even = spread(seen, known)
    assert (found.spread is None) == (even is None)
    if even is not None:
        assert found.spread == pytest.approx(even, rel=1e-9, abs=1e-12)
    if known is not None:
        assert found.igd_plus == pytest.approx(igd_plus(seen, known), rel=1e-9, abs=1e-12)


@settings(deadline=None)
@given(STREAMS)
def test_after_every_row_all_is_as_from_scratch(stream: tuple[np.ndarray, np.ndarray | None]) -> None:
    rows, known = stream
    meter = FrontMeter(np.zeros(rows.shape[1]), known)
    for count, row in enumerate(rows, start=1):
        before = meter.archive.members.copy()
        change = meter.add(row)
        assert change.entered == (count - 1 in meter.archive.members)
        assert change.repeated == (change.entered and any((row == other).all() for other in rows[: count - 1]))
        left = [] if change.removed is None else before[change.removed].tolist()
        assert left == sorted(set(before) - set(meter.archive.members))
        check(meter, rows[:count], known)


@pytest.mark.parametrize("objectives", range(1, 6))
@pytest.mark.parametrize("draw", [cube, sphere])
def test_long_streams_too(draw: Callable[[int, int], np.ndarray], objectives: int) -> None:
    rows, known = draw(1500, objectives), 1.01 * sphere(60, objectives)
    meters = FrontMeter(np.full(objectives, 0.05)), FrontMeter(np.full(objectives, 0.05), known)
    for row in rows:
        for meter in meters:
            meter.add(row)
    check(meters[0], rows, None)
    check(meters[1], rows, known)


def test_the_same_rows_give_the_same_bits() -> None:
    rows, known = np.vstack([cube(400, 4), sphere(400, 4)]), sphere(30, 4)
    histories = []
    for _ in range(2):
        meter = FrontMeter(np.zeros(4), known)
        histories.append([meter.add(row) and meter.quality for row in rows])
    assert histories[0] == histories[1]


def test_a_front_that_never_shrinks_does_not_lose_volume() -> None:
    archive, last = FrontArchive(np.zeros(3)), 0.0
    for row in cube(500, 3):
        archive.add(row)
        assert archive.hypervolume >= last
        last = archive.hypervolume


@pytest.mark.parametrize("kind", [FrontArchive, FrontMeter])
def test_a_row_that_is_not_finite_is_refused_and_changes_nothing(kind: type) -> None:
    record = kind([0.0, 0.0])
    record.add([1.0, 2.0])
    with pytest.raises(ConfigError, match="objective 1 of row 0 is nan"):
        record.add([3.0, np.nan])
    with pytest.raises(ConfigError, match=r"must have the shape \(2,\), not \(3,\)"):
        record.add([3.0, 1.0, 1.0])
    archive = record if kind is FrontArchive else record.archive
    assert archive.gains.tolist() == [[1.0, 2.0]]
    assert archive.hypervolume == 2.0
