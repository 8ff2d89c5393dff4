"""IGD+ and the generalised spread, against definitions, pymoo and values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pymoo.indicators.igd_plus import IGDPlus

from evomerge.errors import ConfigError
from evomerge.fronts import Quality, igd_plus, nondominated, spread

PAIRS = st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(1, 5)).flatmap(
    lambda sizes: st.tuples(
        *(arrays(np.float64, (rows, sizes[2]), elements=st.integers(0, 6).map(float)) for rows in sizes[:2])
    )
)


def quadratic(points: int) -> np.ndarray:
    """Return points of the front of (-x², -(x - 2)²) for x from 0 to 2 (Schaffer 1985)."""
    x = np.linspace(0, 2, points)
    return np.column_stack([-(x**2), -((x - 2) ** 2)])


@settings(deadline=None)
@given(PAIRS)
def test_igd_plus_is_the_definition_and_pymoos(pair: tuple[np.ndarray, np.ndarray]) -> None:
    gains, known = pair
    goal = known[nondominated(known)]
    scale = np.where(np.ptp(goal, axis=0) > 0, np.ptp(goal, axis=0), 1)
    behind = [min(math.hypot(*np.maximum(z - row, 0) / scale) for row in gains) for z in goal]
    assert igd_plus(gains, known) == pytest.approx(np.mean(behind))
    assert igd_plus(gains, known) == pytest.approx(IGDPlus(-goal / scale)(-gains / scale))


def test_a_front_that_is_reached_or_beaten_has_no_distance() -> None:
    known = quadratic(50)
    assert igd_plus(known, known) == 0
    assert igd_plus(known + 0.1, known) == 0


def test_igd_plus_of_the_ends_of_a_quadratic_front() -> None:
    # (0, -4) is behind (-x², -(x - 2)²) by 4 - (x - 2)² in the second objective alone, whose range is 4: x - x² / 4.
    # The other end is the nearer one for x > 1, by symmetry; the mean is the integral of x - x² / 4 from 0 to 1.
    assert igd_plus([[0.0, -4.0], [-4.0, 0.0]], quadratic(20_001)) == pytest.approx(1 / 2 - 1 / 12, rel=1e-4)


def test_an_objective_in_another_unit_changes_nothing() -> None:
    draws = np.random.default_rng(0)
    gains, known, units = draws.random((30, 3)), 1 + draws.random((40, 3)), np.array([1.0, 1000.0, 1e-3])
    assert igd_plus(gains * units, known * units) == pytest.approx(igd_plus(gains, known))
    assert spread(gains * units, known * units) == pytest.approx(spread(gains, known))
    assert spread(gains * units) == pytest.approx(spread(gains))


def test_rows_at_equal_distances_are_spread_evenly() -> None:
    line = np.column_stack([np.arange(6.0), 10 * np.arange(6.0)[::-1]])
    assert spread(line) == pytest.approx(0, abs=1e-12)
    assert spread(np.vstack([line, line[2:4], line[:2] - 0.5])) == pytest.approx(0, abs=1e-12)  # equal, dominated
    assert spread(line, line) == pytest.approx(0, abs=1e-12)


def test_spread_worked_out_by_hand() -> None:
    # At 0, 1 and 4 of 4 along a line: distances of 1/4, 1/4 and 3/4 of its length, so the mean is 5/12.
    line = np.array([[0.0, 4.0], [1.0, 3.0], [4.0, 0.0]])
    assert spread(line) == pytest.approx((1 / 6 + 1 / 6 + 1 / 3) / (5 / 4))
    # One known extreme is reached, the other one is as far away again as the line is long: all scaled to twice of it.
    known = np.array([[0.0, 4.0], [8.0, -4.0]])
    assert spread(line, known) == pytest.approx((1 / 2 + (1 / 6 + 1 / 6 + 1 / 3) / 2) / (1 / 2 + 5 / 8))


def test_too_few_rows_have_no_spread() -> None:
    two = np.array([[1.0, 2.0], [2.0, 1.0]])
    assert spread(two[:1]) is spread(two) is None
    assert spread([[1.0, 2.0], [1.0, 2.0], [0.0, 2.0]], two) is None
    assert spread(two, two) == 0
    assert spread([[1.0], [2.0], [3.0]]) is None


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(ConfigError, match="known front: it has no rows"):
        igd_plus([[1.0, 2.0]], np.empty((0, 2)))
    with pytest.raises(ConfigError, match="gains: it has no rows"):
        igd_plus(np.empty((0, 2)), [[1.0, 2.0]])
    with pytest.raises(ConfigError, match="it has 3 objectives, the gains have 2"):
        spread([[1.0, 2.0]], [[1.0, 2.0, 3.0]])
    with pytest.raises(ConfigError, match="objective 1 of row 0 is nan"):
        igd_plus([[1.0, 2.0]], [[1.0, np.nan]])


def test_json_leaves_out_what_there_is_not() -> None:
    assert Quality(0.5, 1).to_json() == {"hypervolume": 0.5, "size": 1}
    assert Quality(0.5, 2, 0.0, 0.1).to_json() == {"hypervolume": 0.5, "size": 2, "spread": 0.0, "igd_plus": 0.1}
