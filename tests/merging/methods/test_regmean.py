"""RegMean against numpy's least squares on the inputs themselves, and the paper's closed form."""

import numpy
import pytest
import torch

from evomerge.merging import METHODS

REGMEAN = METHODS["regmean"]
INPUTS, OUTPUTS = 9, 6
RNG = numpy.random.default_rng(3)
X = [RNG.normal(size=(n, INPUTS)) @ RNG.normal(size=(INPUTS, INPUTS)) for n in (40, 25, 60)]
W = [RNG.normal(size=(INPUTS, OUTPUTS)) for _ in X]  # as (inputs, outputs)
LAMBDA = [0.3, 1.0, 0.6]


def given(inputs=X, axis=1):
    grams = [torch.tensor(x.T @ x / len(x)).float() for x in inputs]
    return [{"gram": gram, "axis": torch.tensor(axis)} for gram in grams]


def merge(inputs=X, axis=1, **values):
    weights = [torch.tensor(w if axis == 0 else w.T).float() for w in W]
    merged = REGMEAN(weights, statistics=given(inputs, axis), **values).double().numpy()
    return merged if axis == 0 else merged.T


@pytest.mark.parametrize("axis", [0, 1])
def test_minimises_the_squared_error_on_all_models_inputs(axis):
    """Conv1D weights are (inputs, outputs), nn.Linear's (outputs, inputs)."""
    rows = [x * numpy.sqrt(weight / len(x)) for x, weight in zip(X, LAMBDA, strict=True)]
    target = [x @ w for x, w in zip(rows, W, strict=True)]
    best = numpy.linalg.lstsq(numpy.concatenate(rows), numpy.concatenate(target), rcond=None)[0]
    numpy.testing.assert_allclose(merge(axis=axis, weight=LAMBDA, alpha=1.0, ridge=0.0), best, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("alpha", [0.0, 0.6, 0.95])
def test_equals_the_closed_form_with_damped_gram_matrices(alpha):
    grams = [x.T @ x / len(x) for x in X]
    damped = [w * (alpha * g + (1 - alpha) * numpy.diag(numpy.diag(g))) for g, w in zip(grams, LAMBDA, strict=True)]
    exact = numpy.linalg.inv(sum(damped)) @ sum(g @ w for g, w in zip(damped, W, strict=True))
    numpy.testing.assert_allclose(merge(weight=LAMBDA, alpha=alpha, ridge=0.0), exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("ridge", [0.0, 1e-6])
def test_directions_that_no_input_has_are_averaged(ridge):
    silent = [x.copy() for x in X]
    for x in silent:
        x[:, 4] = 0
    merged = merge(silent, weight=LAMBDA, alpha=1.0, ridge=ridge)
    average = sum(share * w for share, w in zip(LAMBDA, W, strict=True)) / sum(LAMBDA)
    numpy.testing.assert_allclose(merged[4], average[4], atol=1e-5)
    assert not numpy.allclose(merged[3], average[3], atol=1e-2)


def test_fewer_tokens_than_inputs_give_the_change_of_least_size_that_meets_all_of_them():
    few = [RNG.normal(size=(2, INPUTS)) for _ in X]  # 6 rows in 9 dimensions can all be met
    average = sum(W) / 3
    rows = numpy.concatenate(few)
    target = numpy.concatenate([x @ (w - average) for x, w in zip(few, W, strict=True)])
    least = average + numpy.linalg.pinv(rows) @ target
    numpy.testing.assert_allclose(merge(few, alpha=1.0, ridge=1e-4), least, atol=2e-2)


def test_a_large_ridge_draws_towards_the_average():
    numpy.testing.assert_allclose(merge(alpha=1.0, ridge=1e4), sum(W) / 3, atol=1e-2)


def test_gram_matrices_of_zeros_and_other_tensors_are_averaged():
    average = sum(W) / 3
    numpy.testing.assert_allclose(merge([numpy.zeros((4, INPUTS))] * 3), average, atol=1e-6)
    tensors = [torch.tensor(w).float() for w in W]
    for statistics in (None, [{}] * 3, [*given()[:2], {}]):
        numpy.testing.assert_allclose(REGMEAN(tensors, statistics=statistics).numpy(), average, atol=1e-6)
