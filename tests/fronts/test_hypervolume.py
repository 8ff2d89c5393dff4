"""Hypervolume, against pymoo, Optuna and inclusion–exclusion."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from optuna._hypervolume import compute_hypervolume
from pymoo.indicators.hv import HV

from evomerge.errors import ConfigError
from evomerge.fronts import hypervolume
from evomerge.fronts.hypervolume import FEW, exclusive

SETS = st.tuples(st.integers(1, 9), st.integers(1, 5)).flatmap(
    lambda shape: arrays(np.float64, shape, elements=st.integers(-1, 4).map(float))
)


def by_inclusion_and_exclusion(gains: np.ndarray, reference: np.ndarray) -> float:
    """Sum the volumes of the intersections of all subsets of boxes, with alternating signs."""
    sides = np.maximum(gains - reference, 0)
    subsets = (s for size in range(1, len(sides) + 1) for s in itertools.combinations(sides, size))
    return sum((-1) ** (len(subset) + 1) * float(np.prod(np.min(subset, axis=0))) for subset in subsets)


@settings(deadline=None)
@given(SETS)
def test_the_volume_is_that_of_three_others(gains: np.ndarray) -> None:
    reference = np.zeros(gains.shape[1])  # rows on it and behind it are common
    volume = hypervolume(gains, reference)
    assert volume == pytest.approx(by_inclusion_and_exclusion(gains, reference), abs=1e-9)
    assert volume == pytest.approx(HV(ref_point=-reference)(-gains), abs=1e-9)
    beyond = gains[(gains > 0).all(axis=1)]  # Optuna takes no others
    assert volume == pytest.approx(compute_hypervolume(-beyond, -reference) if len(beyond) else 0.0, abs=1e-9)


@pytest.mark.parametrize("objectives", range(1, 6))
def test_the_volume_of_many_rows(objectives: int) -> None:
    gains = np.random.default_rng(objectives).random((100, objectives))
    reference = np.full(objectives, 0.2)
    volume = hypervolume(gains, reference)
    assert volume == pytest.approx(HV(ref_point=-reference)(-gains), rel=1e-12)
    beyond = gains[(gains > reference).all(axis=1)]
    assert volume == pytest.approx(compute_hypervolume(-beyond, -reference), rel=1e-12)


def test_rows_that_do_not_exceed_the_reference_everywhere_add_nothing() -> None:
    assert hypervolume([[1.0, 1.0], [5.0, 0.0], [-9.0, 7.0]], [0.0, 0.0]) == 1.0
    assert hypervolume([[0.0, 0.0]], [0.0, 0.0]) == 0.0
    assert hypervolume(np.empty((0, 3)), np.zeros(3)) == 0.0


@pytest.mark.parametrize("count", [1, 40, 4 * FEW])
def test_the_exclusive_volume_is_what_a_point_adds(count: int) -> None:
    draws = np.random.default_rng(count)
    gains = np.abs(draws.normal(size=(count + 20, 5)))
    gains /= np.linalg.norm(gains, axis=1, keepdims=True)
    others, points, reference = gains[20:], gains[:20], np.full(5, 0.05)
    before = hypervolume(others, reference)
    for point in points:
        added = hypervolume(np.vstack([others, point]), reference) - before
        assert exclusive(point, np.ascontiguousarray(others.T), reference) == pytest.approx(added, abs=1e-12)


def test_shapes_and_numbers_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"must have the shape \(2,\), not \(3,\)"):
        hypervolume([[1.0, 1.0]], [0.0, 0.0, 0.0])
    with pytest.raises(ConfigError, match="objective 1 of row 0 is nan"):
        hypervolume([[1.0, np.nan]], [0.0, 0.0])
    with pytest.raises(ConfigError, match="objective 0 of row 0 is inf"):
        hypervolume([[1.0, 1.0]], [np.inf, 0.0])
