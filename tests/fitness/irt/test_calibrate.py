"""Calibration: mirt's fits on real responses, known parameters of simulated ones, and optimality by perturbation."""

import numpy as np
import pytest
import torch
from scipy.special import expit
from scipy.stats import spearmanr

from evomerge.errors import ConfigError
from evomerge.fitness.irt import quadrature_em, variational
from evomerge.fitness.irt.bank import ItemParameters
from evomerge.fitness.irt.calibrate import calibrate, held_out_likelihoods
from evomerge.fitness.irt.likelihood import log_probabilities, marginal_log_likelihood
from evomerge.fitness.irt.responses import ResponseMatrix


def matrix_of(values):
    models, items = values.shape
    return ResponseMatrix(values, tuple(f"m{n}" for n in range(models)), tuple(f"i{n}" for n in range(items)))


def simulate(slopes, models, *, lower=0.0, missing=0.0, seed=0):
    draw = np.random.default_rng(seed)
    intercepts = draw.normal(0, 1.2, len(slopes))
    p = lower + (1 - lower) * expit(draw.normal(size=(models, slopes.shape[1])) @ slopes.T + intercepts)
    values = (draw.random(p.shape) < p).astype(float)
    values[draw.random(p.shape) < missing] = np.nan
    return matrix_of(values), ItemParameters.logistic(slopes, intercepts, np.full(len(slopes), lower))


def clusters(items=30, seed=3):
    """Return slopes of two abilities: all items need the first, every second one the other too."""
    draw = np.random.default_rng(seed)
    return np.stack([draw.uniform(1, 2, items), np.where(np.arange(items) % 2, 1.8, -0.2)], 1)


def test_2pl_on_gsm8k_is_as_likely_as_mirts(metabench):
    reference = metabench("gsm8k")
    found = calibrate(reference.matrix)
    assert found.converged
    assert found.log_likelihood >= reference.log_likelihood * (1 + 1e-4)  # negative: at most 0.01% below
    assert found.log_likelihood == pytest.approx(
        marginal_log_likelihood(found.parameters, reference.matrix.values), abs=1e-6
    )
    assert spearmanr(found.parameters.slopes[:, 0], reference.parameters.slopes[:, 0])[0] >= 0.98
    assert spearmanr(found.parameters.intercepts, reference.parameters.intercepts)[0] >= 0.98


@pytest.mark.parametrize(("name", "model"), [("truthfulqa", "2pl"), ("arc", "2pl"), ("mmlu", "3pl")])
def test_other_fits_are_as_likely_as_mirts(metabench, name, model):
    reference = metabench(name)
    assert calibrate(reference.matrix, model).log_likelihood >= reference.log_likelihood * (1 + 1e-4)


@pytest.mark.parametrize("model", ["rasch", "2pl", "3pl"])
def test_the_parameters_are_a_maximum(model):
    matrix, _ = simulate(np.random.default_rng(1).uniform(0.5, 2, (8, 1)), 400, lower=0.1, missing=0.2)
    found = quadrature_em.fit(matrix.values, model, tolerance=1e-13, turns=5000)
    assert found.converged
    slopes, intercepts = found.parameters.slopes, found.parameters.intercepts

    def height(slopes, intercepts, lower):
        parameters = ItemParameters.logistic(slopes, intercepts, lower)
        means, scales = quadrature_em.PRIOR_MEANS, quadrature_em.PRIOR_SCALES
        penalty = (((intercepts - means[1]) / scales[1]) ** 2).sum()
        penalty += (((slopes[:1] if model == "rasch" else slopes) - means[0]) ** 2).sum() / scales[0] ** 2
        if model == "3pl":
            penalty += (((np.log(lower / (1 - lower)) - means[2]) / scales[2]) ** 2).sum()
        return marginal_log_likelihood(parameters, matrix.values) - penalty / 2

    lower = found.parameters.lower
    top = height(slopes, intercepts, lower)
    for item in range(8):
        one = np.eye(8)[item]
        directions = [(np.ones((8, 1)) if model == "rasch" else one[:, None], 0, 0), (0, one, 0)]
        for a, d, g in [*directions, (0, 0, one)] if model == "3pl" else directions:
            for step in (1e-4, -1e-4):
                moved = lower
                if model == "3pl":
                    moved = expit(np.log(lower / (1 - lower)) + step * 10 * g)
                assert height(slopes + step * a, intercepts + step * d, moved) < top + 1e-7


@pytest.mark.parametrize("model", ["rasch", "2pl", "3pl"])
def test_known_parameters_are_found(model):
    slopes = np.full((20, 1), 1.4) if model == "rasch" else np.random.default_rng(2).uniform(0.7, 2.2, (20, 1))
    matrix, true = simulate(slopes, 4000, lower=0.2 if model == "3pl" else 0.0, missing=0.1)
    found = calibrate(matrix, model).parameters
    curves = [np.exp(log_probabilities(p, torch.linspace(-2, 2, 9).double())[0].numpy()) for p in (found, true)]
    np.testing.assert_allclose(*curves, atol=0.05)
    if model != "3pl":  # of hard items, where guessing begins is not told apart from how steep they are
        np.testing.assert_allclose(found.slopes, true.slopes, atol=0.2)
        assert not found.lower.any()
    if model == "rasch":
        assert np.ptp(found.slopes) == 0


def test_several_abilities_are_found_up_to_a_turn():
    matrix, true = simulate(clusters(), 3000, missing=0.1)
    found = calibrate(matrix, dimensions=2)
    assert found.converged
    np.testing.assert_allclose(found.parameters.slopes @ found.parameters.slopes.T, true.slopes @ true.slopes.T, atol=1)
    np.testing.assert_allclose(found.parameters.intercepts, true.intercepts, atol=0.3)
    explained = (found.parameters.slopes**2).sum(0)
    assert explained[0] > explained[1]
    assert (found.parameters.slopes.sum(0) > 0).all()


def test_the_bound_is_below_the_likelihood_and_near_it():
    matrix, _ = simulate(np.random.default_rng(5).uniform(0.7, 2, (30, 1)), 500, missing=0.1)
    found = variational.fit(matrix.values, 1)
    likelihood = marginal_log_likelihood(found.parameters, matrix.values)
    assert likelihood - 0.01 * 500 < found.bound < likelihood
    assert calibrate(matrix).log_likelihood == pytest.approx(likelihood, rel=2e-3)


def test_the_variational_fit_is_a_maximum():
    matrix, _ = simulate(clusters(10), 300, missing=0.2)
    found = variational.fit(matrix.values, 2, tolerance=1e-7, turns=3000)
    data = variational._Data.of(matrix.values, "cpu")

    def height(slopes, intercepts):
        state = variational._State(*(torch.as_tensor(part) for part in (slopes, intercepts)), *posteriors())
        variational._settle(state, data)
        penalty = (slopes**2).sum() / variational.SLOPE_SCALE**2 + (
            intercepts**2
        ).sum() / variational.INTERCEPT_SCALE**2
        return variational._bound(state, data) - penalty / 2

    def posteriors():
        return variational._prior(300, 2, "cpu")

    slopes, intercepts = found.parameters.slopes, found.parameters.intercepts
    top, draw = height(slopes, intercepts), np.random.default_rng(0)
    for _ in range(10):
        a, d = draw.normal(size=slopes.shape), draw.normal(size=intercepts.shape)
        gains = [height(slopes + step * a, intercepts + step * d) - top for step in (0.05, -0.05)]
        assert max(gains) < 0


def test_rescaling_moves_scales_but_no_logit():
    draw = np.random.default_rng(0)
    root = torch.as_tensor(draw.normal(size=(50, 3, 3)))
    parts = (draw.normal(size=(7, 3)), draw.normal(size=7), draw.normal(1, 2, size=(50, 3)))
    state = variational._State(*map(torch.as_tensor, parts), root @ root.mT)
    before = variational._logits(state, slice(None))
    for change in (variational._rescale, variational._orient):
        change(state)
        torch.testing.assert_close(variational._logits(state, slice(None)), before)
    together = state.means.T @ state.means / 50 + state.covariances.mean(0)
    torch.testing.assert_close(state.means.mean(0), torch.zeros(3).double())
    torch.testing.assert_close(together, torch.eye(3).double())


def test_long_tests_take_few_turns():
    """Without rescaling the abilities, EM takes more than 80 here."""
    matrix, _ = simulate(np.random.default_rng(5).uniform(1, 3, (150, 1)), 500)
    assert quadrature_em.fit(matrix.values).turns < 60


def test_the_number_of_abilities_is_found():
    assert calibrate(simulate(clusters(), 800)[0], dimensions="auto").parameters.dimensions == 2
    one = np.random.default_rng(5).uniform(0.7, 2, (30, 1))
    found = calibrate(simulate(one, 800)[0], dimensions="auto")
    assert found.parameters.dimensions == 1
    assert list(found.held_out) == [1]


def test_equal_input_gives_equal_output():
    matrix, _ = simulate(clusters(), 300)
    for dimensions in (1, 2):
        first, second = (calibrate(matrix, dimensions=dimensions) for _ in range(2))
        assert np.array_equal(first.parameters.slopes, second.parameters.slopes)
    assert held_out_likelihoods(matrix, seed=1) == held_out_likelihoods(matrix, seed=1)
    assert held_out_likelihoods(matrix, seed=1) != held_out_likelihoods(matrix, seed=2)


def test_graded_responses_count_as_shares():
    draw = np.random.default_rng(6)
    slopes, intercepts = draw.uniform(0.7, 2, (60, 1)), draw.normal(0, 1.2, 60)
    ability = draw.normal(size=(800, 1))
    values = expit((ability - ability.mean()) / ability.std() @ slopes.T + intercepts)
    for dimensions in (1, 2):
        found = calibrate(matrix_of(values), dimensions=dimensions).parameters
        np.testing.assert_allclose(found.slopes[:, 0], slopes[:, 0], atol=0.2)
        np.testing.assert_allclose(found.intercepts, intercepts, atol=0.2)


def test_hard_and_few_data_give_finite_parameters():
    values = np.zeros((4, 6))
    values[0, :5], values[1, 5] = 1, 1  # each item told apart by one model; two models all wrong
    for model in ("rasch", "2pl", "3pl"):
        found = calibrate(matrix_of(values), model)
        assert found.parameters.problems() == []
    assert calibrate(matrix_of(values), dimensions=2).parameters.problems() == []


@pytest.mark.parametrize(("model", "dimensions"), [("rasch", 2), ("3pl", 3), ("2pl", 0)])
def test_impossible_dimensions_are_refused(model, dimensions):
    with pytest.raises(ConfigError, match=f"{dimensions} dimensions are not known to the model '{model}'"):
        calibrate(simulate(clusters(), 50)[0], model, dimensions)


def test_a_bank_says_how_it_was_made():
    matrix, _ = simulate(clusters(), 200)
    bank = calibrate(matrix, dimensions=2).bank(matrix, "task", "acc")
    assert bank.items == matrix.items
    assert bank.made["model"] == "2pl"
    assert (bank.made["dimensions"], bank.made["models"], bank.made["responses"]) == (2, 200, 6000)
