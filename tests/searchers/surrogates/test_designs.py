"""Designs: as many points as asked for, in the box, always the same, spread as their names say."""

import numpy as np
import pytest
from scipy.stats import qmc

from evomerge.searchers.surrogates.designs import DESIGN_NAMES, design
from evomerge.searchers.surrogates.quadratic import features, terms_of


@pytest.mark.parametrize("dimensions", [1, 2, 7])
@pytest.mark.parametrize("count", [0, 1, 2, 5, 33])
@pytest.mark.parametrize("name", DESIGN_NAMES)
def test_counts_bounds_and_determinism(name, count, dimensions):
    points = design(name, count, dimensions, 3)
    assert points.shape == (count, dimensions)
    assert points.dtype == np.float64
    assert ((points >= 0) & (points <= 1)).all()
    np.testing.assert_array_equal(points, design(name, count, dimensions, 3))
    if count > dimensions:
        assert not np.array_equal(points, design(name, count, dimensions, 4))


@pytest.mark.parametrize("name", DESIGN_NAMES)
def test_the_global_generator_is_left_alone(name):
    np.random.seed(7)
    expected = np.random.random()
    np.random.seed(7)
    design(name, 20, 3, 0)
    assert np.random.random() == expected


def test_mixed_begins_with_the_corners_then_points_of_equal_coefficients():
    points = design("mixed", 5 + 40, 5, 0)
    np.testing.assert_array_equal(points[:5], np.eye(5))
    isotropic = points[5:15]
    np.testing.assert_array_equal(isotropic, np.repeat(isotropic[:, :1], 5, axis=1))
    assert (np.ptp(points[15:], axis=1) > 0).all()
    near = np.abs(points[15:25, None] - points[:15]).max(2).min(1)
    assert near.max() < 0.5  # five standard deviations of the disturbance
    assert np.array_equal(np.sort(np.floor(isotropic[:, 0] * 10)), np.arange(10))


def test_mixed_of_few_points_is_corners_alone():
    np.testing.assert_array_equal(design("mixed", 3, 6, 0), np.eye(6)[:3])


def test_latin_hypercube_has_one_point_in_each_slice():
    points = design("latin-hypercube", 12, 3, 5)
    for column in points.T:
        np.testing.assert_array_equal(np.sort(np.floor(column * 12)), np.arange(12))


def test_sobol_fills_more_evenly_than_chance():
    chance = [qmc.discrepancy(np.random.default_rng(seed).random((64, 4))) for seed in range(5)]
    assert qmc.discrepancy(design("sobol", 64, 4, 0)) < 0.5 * min(chance)


def test_more_dimensions_than_sobol_has():
    points = design("sobol", 3, qmc.Sobol.MAXDIM + 1, 0)
    assert points.shape == (3, qmc.Sobol.MAXDIM + 1)


@pytest.mark.parametrize("name", ["latin-hypercube", "sobol"])
@pytest.mark.parametrize("dimensions", [1, 3, 6])
def test_as_many_points_as_coefficients_determine_a_quadratic(name, dimensions):
    count = terms_of(dimensions)
    assert np.linalg.matrix_rank(features(design(name, count, dimensions, 0))) == count
