"""Points that add hypervolume: against Monte Carlo and exact hypervolumes of another module."""

import numpy as np
import pytest

from evomerge.fronts import hypervolume, nondominated
from evomerge.searchers.surrogates.improvement import best_points, points_to_try, spread_points

DRAWS = 400


def case(objectives, points, seed, error=0.2):
    """A front on the unit sphere, and predictions near it with errors."""
    draw = np.random.default_rng(seed)
    front = draw.random((6, objectives)) + 0.05
    front = 0.8 * front / np.linalg.norm(front, axis=1, keepdims=True)
    means = draw.random((points, objectives)) * 0.9 + 0.1
    return front, means, error * draw.random((points, objectives))


def reference(front, means, errors):
    """The reference point that the module documents: a tenth of the hoped range below the hoped front."""
    hoped = np.concatenate([front, means + errors])
    good = np.concatenate([front[nondominated(front)], hoped[nondominated(hoped)]])
    return good.min(0) - 0.1 * np.ptp(good, axis=0)


def added(front, drawn, point):
    """Mean hypervolume that draws (draws, points, objectives) add to a front."""
    alone = hypervolume(front, point)
    return np.mean([hypervolume(np.concatenate([front, rows]), point) - alone for rows in drawn])


@pytest.mark.parametrize("objectives", [2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_the_first_point_has_the_largest_expected_improvement(objectives, seed):
    front, means, errors = case(objectives, 8, seed)
    point = reference(front, means, errors)
    noise = np.random.default_rng(9).normal(size=(DRAWS, 8, objectives))
    drawn = means + errors * noise
    expected = [added(front, drawn[:, [row]], point) for row in range(8)]
    [first] = best_points(front, means, errors, 1, seed)
    assert expected[first] >= 0.95 * max(expected)
    assert expected[first] > 1.3 * np.median(expected)


@pytest.mark.parametrize("objectives", [2, 3])
def test_a_batch_is_greedy_in_what_points_add_together(objectives):
    front, means, errors = case(objectives, 7, 4, error=0.1)
    point = reference(front, means, errors)
    drawn = means + errors * np.random.default_rng(9).normal(size=(DRAWS, 7, objectives))
    chosen = best_points(front, means, errors, 3, 0)
    assert len(set(chosen)) == 3
    for size in (1, 2, 3):
        head = chosen[: size - 1]
        gains = [added(front, drawn[:, [*head, row]], point) for row in range(7)]
        assert gains[chosen[size - 1]] >= 0.97 * max(gains)


@pytest.mark.parametrize("objectives", [1, 2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_means_at_their_word_add_the_exact_hypervolume(objectives, seed):
    front, means, _ = case(objectives, 12, seed)
    none = np.zeros_like(means)
    point, known = reference(front, means, none), front
    for row in best_points(front, means, none, 3, seed):
        exact = [hypervolume(np.concatenate([known, means[[other]]]), point) for other in range(12)]
        assert exact[row] - hypervolume(known, point) >= 0.95 * (max(exact) - hypervolume(known, point))
        known = np.concatenate([known, means[[row]]])


def test_uncertainty_counts():
    front = np.array([[0.5, 0.5], [0.3, 0.7], [0.7, 0.3]])
    means = np.array([[0.5, 0.5], [0.5, 0.5], [0.52, 0.51]])
    errors = np.array([[0.0, 0.0], [0.2, 0.2], [0.0, 0.0]])
    assert best_points(front, means, errors, 2, 0) == [1, 2]
    assert best_points(front, means, 0 * errors, 3, 0) == [2]


def test_bad_points_do_not_coarsen_the_look_at_good_ones():
    front = np.array([[0.5, 0.5], [-1e6, -1e6]])
    means = np.array([[0.500, 0.502], [0.502, 0.505], [-1e6, -1e5]])
    assert best_points(front, means, np.zeros_like(means), 1, 0) == [1]


def test_points_that_add_nothing_are_left_out():
    front = np.array([[0.5, 0.5]])
    none = np.zeros((1, 2))
    assert best_points(front, np.array([[0.4, 0.4]]), none, 2, 0) == []
    assert best_points(front, front, none, 2, 0) == []
    assert best_points(front, np.array([[0.6, 0.6]]), none, 2, 0) == [0]
    assert best_points(front, np.full((5, 2), 0.6), np.zeros((5, 2)), 4, 0) == [0]


def test_without_a_front_the_best_point_comes_first():
    means = np.array([[0.1, 0.1], [0.9, 0.8], [0.2, 0.3]])
    assert best_points(np.empty((0, 2)), means, np.zeros((3, 2)), 1, 0) == [1]
    assert best_points(np.empty((0, 1)), means[:, :1], np.zeros((3, 1)), 2, 0) == [1]


def test_one_objective_is_expected_improvement():
    front, means, errors = np.array([[1.0]]), np.array([[0.9], [0.5], [1.1]]), np.array([[0.1], [1.0], [0.01]])
    normal = np.random.default_rng(0).normal(size=20000)
    expected = [np.maximum(mean + error * normal - 1, 0).mean() for mean, error in zip(means, errors, strict=True)]
    assert best_points(front, means, errors, 1, 0) == [int(np.argmax(expected))] == [1]


def test_units_do_not_matter_nor_does_the_run():
    front, means, errors = case(2, 20, 1)
    scale = np.array([1e6, 1e-6])
    chosen = best_points(front, means, errors, 4, 5)
    assert best_points(scale * front, scale * means, scale * errors, 4, 5) == chosen
    assert best_points(front, means, errors, 4, 5) == chosen


def test_spread_points_are_far_from_known_ones_and_from_each_other():
    line = np.linspace(0, 1, 11)[:, None]
    means = np.concatenate([line, 1e6 * (1 - line)], axis=1)
    assert spread_points(means[[0]], means, 2) == [10, 5]
    assert spread_points(np.empty((0, 2)), means, 2) == [0, 10]
    assert sorted(spread_points(means[[0]], means, 99)) == list(range(11))
    assert spread_points(means, means[:0], 3) == []
    assert sorted(spread_points(means[[3]], np.repeat(means[[3]], 4, axis=0), 3)) == [0, 1, 2]


def test_points_to_try_go_on_where_no_more_hypervolume_is_to_gain():
    means = np.stack([np.linspace(0, 1, 21), 1 - np.linspace(0, 1, 21)], axis=1)
    front = means[[0, 20]]
    best = best_points(front, means, np.zeros_like(means), 4, 0)
    assert points_to_try(front, means, np.zeros_like(means), 4, 0) == best
    with_dominated = np.concatenate([means - 0.5, means])
    rows = points_to_try(front, with_dominated, np.zeros_like(with_dominated), 100, 0)
    assert sorted(rows) == list(range(21, 42))  # each once, and none that another dominates
    assert points_to_try(front, means[:0], means[:0], 4, 0) == []
