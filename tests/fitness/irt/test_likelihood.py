"""Likelihoods and abilities: against mirt's on real responses, and against sums over all patterns."""

import itertools

import numpy as np
import pytest
from scipy.special import expit

from evomerge.errors import ConfigError
from evomerge.fitness.irt.bank import ItemParameters
from evomerge.fitness.irt.likelihood import abilities, marginal_log_likelihood, sum_score_abilities

GRID = np.linspace(-6, 6, 61)
WEIGHTS = np.exp(-(GRID**2) / 2) / np.exp(-(GRID**2) / 2).sum()


def items(dimensions=1, count=6, seed=0, lower=True):
    draw = np.random.default_rng(seed)
    guess = draw.uniform(0, 0.3, count) if lower else np.zeros(count)
    return ItemParameters(draw.normal(1, 1, (count, dimensions)), draw.normal(0, 1, count), guess, np.ones(count))


def naive(parameters, row):
    """Return p(row, θ) at the grid's points, one item after the other."""
    joint = WEIGHTS.copy()
    for item, response in enumerate(row):
        if not np.isnan(response):
            p = expit(parameters.slopes[item, 0] * GRID + parameters.intercepts[item])
            p = parameters.lower[item] + (parameters.upper[item] - parameters.lower[item]) * p
            joint *= p**response * (1 - p) ** (1 - response)
    return joint


@pytest.mark.parametrize("name", ["gsm8k", "arc", "mmlu", "truthfulqa"])
def test_the_log_likelihood_is_mirts(metabench, name):
    reference = metabench(name)
    found = marginal_log_likelihood(reference.parameters, reference.matrix.values)
    assert found == pytest.approx(reference.log_likelihood, abs=5e-4)


@pytest.mark.parametrize("name", ["gsm8k", "truthfulqa"])
def test_sum_score_abilities_are_mirts(metabench, name):
    reference = metabench(name)  # of these two, mirt's EAP abilities for sum scores were kept
    means, _ = sum_score_abilities(reference.parameters)
    totals = reference.matrix.values.sum(1).astype(int)
    np.testing.assert_allclose(means[totals], reference.abilities, atol=1e-6, rtol=0)


def test_likelihood_and_abilities_follow_their_definition():
    parameters = items()
    rows = np.array([[1, 0, 1, 1, 0, 0], [1, np.nan, 0, np.nan, 1, 1], [0.3, 1, 0.5, 0, 0.9, np.nan], [np.nan] * 6])
    joint = np.array([naive(parameters, row) for row in rows])
    posterior = joint / joint.sum(1, keepdims=True)
    means = posterior @ GRID
    assert marginal_log_likelihood(parameters, rows) == pytest.approx(np.log(joint.sum(1)).sum(), abs=1e-10)
    found = abilities(parameters, rows)
    np.testing.assert_allclose(found.means[:, 0], means, atol=1e-12)
    np.testing.assert_allclose(found.standard_errors[:, 0], np.sqrt(posterior @ GRID**2 - means**2), atol=1e-10)
    assert found.means[3, 0] == pytest.approx(0, abs=1e-12)
    assert found.standard_errors[3, 0] == pytest.approx(1, abs=1e-6)


def test_all_patterns_together_have_probability_one():
    patterns = np.array(list(itertools.product([0.0, 1.0], repeat=6)))
    each = [np.exp(marginal_log_likelihood(items(), pattern[None])) for pattern in patterns]
    assert sum(each) == pytest.approx(1, abs=1e-12)


def test_sum_score_abilities_average_those_of_the_patterns():
    parameters = items(count=5)
    patterns = np.array(list(itertools.product([0.0, 1.0], repeat=5)))
    joint = np.array([naive(parameters, pattern) for pattern in patterns])
    means, errors = sum_score_abilities(parameters)
    for total in range(6):
        posterior = joint[patterns.sum(1) == total].sum(0)
        posterior /= posterior.sum()
        assert means[total] == pytest.approx(posterior @ GRID, abs=1e-12)
        assert errors[total] == pytest.approx(np.sqrt(posterior @ GRID**2 - (posterior @ GRID) ** 2), abs=1e-10)


def test_extreme_items_stay_finite():
    parameters = ItemParameters.logistic(np.array([[50.0], [-50.0]]), np.array([300.0, -700.0]))
    assert np.isfinite(marginal_log_likelihood(parameters, np.array([[0.0, 1.0], [1.0, 0.0]])))


def test_a_single_ability_is_the_same_among_several():
    one = items(lower=False, count=40)
    two = ItemParameters.logistic(np.hstack([one.slopes, np.zeros((40, 1))]), one.intercepts)
    rows = np.random.default_rng(1).integers(0, 2, (20, 40)).astype(float)
    rows[:, ::7] = np.nan
    found, expected = abilities(two, rows), abilities(one, rows)
    np.testing.assert_allclose(found.means[:, 0], expected.means[:, 0], atol=0.03)
    np.testing.assert_allclose(found.standard_errors[:, 0], expected.standard_errors[:, 0], rtol=0.05)
    np.testing.assert_allclose(found.means[:, 1], 0, atol=1e-9)
    np.testing.assert_allclose(found.standard_errors[:, 1], 1, atol=1e-9)


def test_what_the_grid_and_the_gaussians_cannot_do_is_refused():
    with pytest.raises(ConfigError, match="2 dimensions cannot be integrated over a grid of one"):
        marginal_log_likelihood(items(2), np.ones((1, 6)))
    with pytest.raises(ConfigError, match="guessing and slips are only known to models of one dimension"):
        abilities(items(2), np.ones((1, 6)))
