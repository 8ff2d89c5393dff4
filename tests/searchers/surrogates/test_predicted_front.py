"""The predicted front against fronts known in closed form: segments and triangles between centres of paraboloids."""

import numpy as np
import pytest

from evomerge.fronts import igd_plus, nondominated
from evomerge.searchers.surrogates.predicted_front import predicted_front
from evomerge.searchers.surrogates.quadratic import fit

TWO = np.array([[0.2, 0.3, 0.5], [0.8, 0.6, 0.1]])
THREE = np.array([[0.2, 0.3], [0.8, 0.6], [0.5, 0.9]])


def toward(centres):
    """Gains that equal paraboloids give: their front is the hull of the centres."""
    return lambda points: -np.square(points[:, None] - centres).sum(2)


def hull(centres, count):
    if len(centres) == 2:
        share = np.linspace(0, 1, count)[:, None]
        return share * centres[0] + (1 - share) * centres[1]
    shares = np.random.default_rng(0).dirichlet(np.ones(len(centres)), count)
    return shares @ centres


def found(gains, dimensions, objectives, optimizer="nsga3", population=100, generations=30, seed=1, **options):
    return predicted_front(
        gains,
        np.empty((0, dimensions)),
        objectives,
        optimizer=optimizer,
        population=population,
        generations=generations,
        seed=seed,
        **options,
    )


@pytest.mark.parametrize("optimizer", ["nsga2", "nsga3"])
def test_two_objectives(optimizer):
    gains, exact = toward(TWO), toward(TWO)(hull(TWO, 400))
    assert igd_plus(gains(found(gains, 3, 2, optimizer, 600)), exact) <= 1e-3
    assert igd_plus(gains(found(gains, 3, 2, optimizer)), exact) <= 3 * igd_plus(gains(hull(TWO, 100)), exact)


@pytest.mark.parametrize("optimizer", ["nsga2", "nsga3"])
def test_three_objectives(optimizer):
    gains, exact = toward(THREE), toward(THREE)(hull(THREE, 2000))
    points = found(gains, 2, 3, optimizer)
    assert igd_plus(gains(points), exact) <= 2 * igd_plus(gains(hull(THREE, 100)), exact)
    outside = [np.linalg.norm(hull(THREE, 20000) - point, axis=1).min() for point in points]
    assert np.quantile(outside, 0.9) < 0.06


@pytest.mark.parametrize("optimizer", ["nsga2", "nsga3"])
def test_no_point_found_dominates_another(optimizer):
    points = found(toward(THREE), 2, 3, optimizer)
    assert nondominated(toward(THREE)(points)).all()
    assert len(np.unique(points, axis=0)) == len(points)
    assert ((points >= 0) & (points <= 1)).all()


def test_one_objective_is_its_optimum():
    points = found(toward(TWO[:1]), 3, 1)
    assert np.abs(points - TWO[0]).max() < 0.01


def test_one_dimension():
    centres = np.array([[0.25], [0.75]])
    points = found(toward(centres), 1, 2)
    assert points.min() == pytest.approx(0.25, abs=0.01)
    assert points.max() == pytest.approx(0.75, abs=0.01)


@pytest.mark.parametrize("optimizer", ["nsga2", "nsga3"])
def test_same_seed_same_front_and_the_global_generator_is_left_alone(optimizer):
    np.random.seed(7)
    expected = np.random.random()
    np.random.seed(7)
    points = found(toward(TWO), 3, 2, optimizer)
    assert np.random.random() == expected
    np.testing.assert_array_equal(points, found(toward(TWO), 3, 2, optimizer))
    assert not np.array_equal(points, found(toward(TWO), 3, 2, optimizer, seed=2))


def test_points_begin_where_they_are_told_to():
    start = hull(TWO, 100)
    points = predicted_front(toward(TWO), start, 2, optimizer="nsga2", population=100, generations=1, seed=0)
    np.testing.assert_array_equal(points, np.unique(start, axis=0))


def test_points_are_where_genes_can_be_each_once():
    def thirds(points):
        return (np.minimum(np.floor(points * 3), 2) + 0.5) / 3

    points = found(toward(TWO[:, :2]), 2, 2, settle=thirds)
    np.testing.assert_allclose(points, thirds(points))
    assert len(np.unique(points, axis=0)) == len(points) <= 9


def test_a_search_of_the_front_asks_for_no_more_predictions_than_it_may():
    points = np.random.default_rng(0).random((60, 4))
    surrogates = [fit(points, -np.square(points - centre).sum(1), "identity") for centre in (0.2, 0.8)]
    asked = []

    def gains(at):
        asked.append(len(at))
        return np.stack([surrogate(at) for surrogate in surrogates], axis=1)

    found(gains, 4, 2, "nsga2")
    assert sum(asked) == 3000
