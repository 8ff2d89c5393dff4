"""Moments over models: ordinary least squares where models are many, the response model where they are few."""

import itertools

import numpy as np
import pytest
from scipy.special import expit

from evomerge.fitness.irt.bank import ItemParameters
from evomerge.fitness.irt.moments import DRAWS, PRIOR_MODELS, ScoreMoments


def items(count=7, dimensions=1, seed=0, lower=0.0):
    draw = np.random.default_rng(seed)
    slopes, intercepts = draw.uniform(0.5, 2, (count, dimensions)), draw.normal(0, 1.2, count)
    return ItemParameters.logistic(slopes, intercepts, np.full(count, lower))


def respond(parameters, models, seed=1):
    draw = np.random.default_rng(seed)
    ability = draw.normal(size=(models, parameters.dimensions))
    p = parameters.lower + (1 - parameters.lower) * expit(ability @ parameters.slopes.T + parameters.intercepts)
    return (draw.random(p.shape) < p).astype(float)


def covariance(moments):
    return moments.factors.T @ moments.factors + np.diag(moments.noise)


def residual_variance(moments, rows):
    """Return the variance of the score that these items leave, by its formula: Var(y) - c' S^-1 c."""
    everything = covariance(moments)
    ones = np.full(len(everything), 1 / len(everything))
    total = ones @ everything @ ones
    if not len(rows):
        return total
    with_score = (everything @ ones)[rows]
    return total - with_score @ np.linalg.inv(everything[np.ix_(rows, rows)]) @ with_score


def by_brute_force(moments, count):
    """Select forward: at each step the item that, together with those before, leaves the least variance."""
    rows = []
    for _ in range(count):
        rest = [item for item in range(len(moments.means)) if item not in rows]
        rows.append(min(rest, key=lambda item: residual_variance(moments, [*rows, item])))
    return rows


@pytest.mark.parametrize("graded", [False, True])
def test_with_many_models_the_weights_are_least_squares(graded):
    responses = respond(items(), 20_000)
    if graded:
        responses = 0.7 * responses + 0.3 * np.random.default_rng(2).random(responses.shape)
    rows = np.array([4, 0, 5])
    weights, offset = ScoreMoments.of(items(), responses).weights(rows)
    design = np.column_stack([responses[:, rows], np.ones(len(responses))])
    expected, *_ = np.linalg.lstsq(design, responses.mean(1), rcond=None)
    # the response model has the weight of 50 models in 20,000: it moves weights by about 50 / 20,000 of their size
    np.testing.assert_allclose([*weights, offset], expected, atol=2 * PRIOR_MODELS / len(responses))


def test_few_models_count_beside_the_response_models_moments():
    """Moments by their formula: the response model's by fine integration over the ability, the rest by numpy."""
    parameters, models = items(lower=0.2), 5
    responses = respond(parameters, models)
    grid = np.linspace(-8, 8, 2001)
    density = np.exp(-(grid**2) / 2) / np.exp(-(grid**2) / 2).sum()
    p = parameters.lower + (1 - parameters.lower) * expit(grid[:, None] * parameters.slopes.T + parameters.intercepts)
    mean = density @ p
    implied = (density[:, None] * p).T @ p - np.outer(mean, mean)
    np.fill_diagonal(implied, mean * (1 - mean))  # a response is 0 or 1
    share = models / (models + PRIOR_MODELS)
    found = ScoreMoments.of(parameters, responses)
    error = 4 * 0.25 / np.sqrt(DRAWS)  # of means over so many draws
    np.testing.assert_allclose(found.means, share * responses.mean(0) + (1 - share) * mean, atol=error)
    expected = share * np.cov(responses.T, bias=True) + (1 - share) * implied
    np.testing.assert_allclose(covariance(found), expected, atol=error / 2)


def test_patterns_in_proportion_to_their_probability_give_the_response_models_moments_whatever_the_weight():
    """Where models are as the response model says, to draw towards it changes nothing."""
    parameters = items(4)
    grid = np.linspace(-8, 8, 801)
    density = np.exp(-(grid**2) / 2) / np.exp(-(grid**2) / 2).sum()
    p = expit(grid[:, None] * parameters.slopes.T + parameters.intercepts)
    patterns = np.array(list(itertools.product([0.0, 1.0], repeat=4)))
    chance = np.array([density @ np.prod(np.where(row, p, 1 - p), axis=1) for row in patterns])
    responses = np.repeat(patterns, np.round(3000 * chance).astype(int), axis=0)
    few, many = ScoreMoments.of(parameters, responses[::40]), ScoreMoments.of(parameters, responses)
    for moments in (few, many):
        weights, offset = moments.weights(np.array([1, 2]))
        centred = patterns - chance @ patterns
        exact = (centred * chance[:, None]).T @ centred
        expected = np.linalg.solve(exact[1:3, 1:3], exact[1:3].mean(1))
        np.testing.assert_allclose(weights, expected, atol=0.03)
        assert offset == pytest.approx(chance @ patterns.mean(1) - expected @ (chance @ patterns)[1:3], abs=0.03)


@pytest.mark.parametrize(("models", "dimensions", "seed"), [(3, 1, 0), (40, 2, 1), (500, 2, 2), (2000, 1, 3)])
def test_forward_selection_is_the_brute_force_one(models, dimensions, seed):
    parameters = items(9, dimensions, seed)
    moments = ScoreMoments.of(parameters, respond(parameters, models, seed + 10))
    assert moments.best_items(9).tolist() == by_brute_force(moments, 9)


def test_the_weights_leave_the_least_variance():
    moments = ScoreMoments.of(items(), respond(items(), 60))
    rows, everything = np.array([6, 1, 3]), covariance(moments)
    weights, _ = moments.weights(rows)

    def left(weights):
        apart = np.full(7, 1 / 7)
        apart[rows] -= weights
        return apart @ everything @ apart

    assert left(weights) == pytest.approx(residual_variance(moments, rows), rel=1e-9)
    for change in 1e-3 * np.random.default_rng(0).normal(size=(20, 3)):
        assert left(weights + change) > left(weights)


def test_the_order_of_items_does_not_matter():
    parameters, order = items(8, 2), np.random.default_rng(5).permutation(8)
    responses = respond(parameters, 80)
    straight = ScoreMoments.of(parameters, responses)
    permuted = ScoreMoments.of(parameters.chosen(order), responses[:, order])
    np.testing.assert_array_equal(order[permuted.best_items(5)], straight.best_items(5))
    rows = np.array([1, 4, 6])
    weights, offset = permuted.weights(rows)
    expected, expected_offset = straight.weights(order[rows])
    np.testing.assert_allclose(weights, expected, rtol=1e-9)
    assert offset == pytest.approx(expected_offset, rel=1e-9)


def test_all_items_predict_the_score():
    moments = ScoreMoments.of(items(), respond(items(), 30))
    rows = moments.best_items(7)
    weights, offset = moments.weights(rows)
    np.testing.assert_allclose(weights, 1 / 7, atol=1e-9)
    assert offset == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("models", [1, 2, 300])
@pytest.mark.parametrize("steep", [1, 1000])
def test_degenerate_items_give_finite_weights(models, steep):
    """One that all get right, one that none does, and two that are the same."""
    parameters = items(6)
    parameters = ItemParameters.logistic(steep * parameters.slopes, parameters.intercepts)
    responses = respond(parameters, models)
    responses[:, 0], responses[:, 1], responses[:, 3] = 1, 0, responses[:, 2]
    moments = ScoreMoments.of(parameters, responses)
    rows = moments.best_items(6)
    assert sorted(rows) == list(range(6))
    weights, offset = moments.weights(rows)
    assert np.isfinite(weights).all()
    assert np.isfinite(offset)
    np.testing.assert_allclose(responses[:, rows] @ weights + offset, responses.mean(1), atol=1e-6)


def test_without_knowledge_of_the_models_the_first_item_is_the_one_that_tells_most():
    parameters = ItemParameters.logistic(np.array([[0.1], [2.5], [0.1], [0.2]]), np.zeros(4))
    responses = np.random.default_rng(0).integers(0, 2, (1, 4)).astype(float)
    assert ScoreMoments.of(parameters, responses).best_items(1).tolist() == [1]
