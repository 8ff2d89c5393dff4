"""MAP's bins: points in the box, most where surrogates miss most."""

import numpy as np
import pytest

from evomerge.searchers.surrogates.bins import _angles, _directions, uncertain_points
from evomerge.searchers.surrogates.quadratic import fit


def zero(dimensions):
    """A surrogate that predicts 0 everywhere."""
    points = np.random.default_rng(0).random((40, dimensions))
    return fit(points, np.zeros(40))


@pytest.mark.parametrize("dimensions", [2, 3, 6])
def test_angles_and_directions_are_inverse(dimensions):
    points = np.random.default_rng(1).random((50, dimensions)) + 1e-3
    lengths = np.linalg.norm(points, axis=1, keepdims=True)
    angles = _angles(points)
    assert angles.shape == (50, dimensions - 1)
    assert ((angles >= 0) & (angles <= np.pi / 2)).all()
    np.testing.assert_allclose(lengths * _directions(angles), points)


@pytest.mark.parametrize("dimensions", [1, 2, 3, 6])
def test_points_are_in_the_box_and_the_same_again(dimensions):
    points = np.random.default_rng(1).random((30, dimensions))
    values = points.sum(1, keepdims=True)
    chosen = uncertain_points(points, values, [zero(dimensions)], 200, 5)
    assert chosen.shape == (200, dimensions)
    assert ((chosen >= 0) & (chosen <= 1)).all()
    assert chosen.max() > 0.9
    np.testing.assert_array_equal(chosen, uncertain_points(points, values, [zero(dimensions)], 200, 5))


def test_points_are_in_the_direction_of_the_largest_misses():
    points = np.random.default_rng(1).random((200, 2))
    angles = np.arctan2(points[:, 1], points[:, 0])
    values = np.where(angles > 3 * np.pi / 8, 1.0, 0.01)[:, None]
    chosen = uncertain_points(points, values, [zero(2)], 400, 0)
    found = np.arctan2(chosen[:, 1], chosen[:, 0])
    assert (found > 3 * np.pi / 8).all()
    assert found.max() - found.min() > 0.9 * np.pi / 8
    assert np.histogram(chosen.max(1), 4, (0, 1))[0].min() > 60  # along the whole ray


def test_objectives_count_alike_whatever_their_units():
    points = np.random.default_rng(1).random((200, 2))
    angles = np.arctan2(points[:, 1], points[:, 0])
    values = np.stack([angles < np.pi / 8, angles > 3 * np.pi / 8], axis=1) * [[1.0, 0.9]]
    chosen = uncertain_points(points, values, [zero(2), zero(2)], 400, 0)
    units = values * [2.0**20, 2.0**-20]
    np.testing.assert_array_equal(uncertain_points(points, units, [zero(2), zero(2)], 400, 0), chosen)
    found = np.arctan2(chosen[:, 1], chosen[:, 0])
    assert ((found > 3 * np.pi / 8) | (found < np.pi / 8)).all()


def test_surrogates_that_miss_nothing_leave_all_directions_open():
    points = np.random.default_rng(1).random((100, 2))
    chosen = uncertain_points(points, np.zeros((100, 1)), [zero(2)], 400, 0)
    angles = np.arctan2(chosen[:, 1], chosen[:, 0])
    assert np.histogram(angles, 4, (0, np.pi / 2))[0].min() > 60
