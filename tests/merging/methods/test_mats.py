"""MaTS: its iterates are scipy's, and they end at the closed form."""

import numpy
import pytest
import torch
from scipy.sparse.linalg import LinearOperator, cg

from evomerge.merging import METHODS
from evomerge.testing.merge_methods import draw, statistics

BASE, *TENSORS = draw(4)  # (12 outputs, 10 inputs)
GIVEN = [statistics(seed=index) for index in range(3)]
SHARES = numpy.array([0.5, 0.25, 0.25])
WEIGHT = [1.0, 0.5, 0.5]
START = BASE.double().numpy() + 1.4 * (
    sum(s * t.double().numpy() for s, t in zip(SHARES, TENSORS, strict=True)) - BASE.double().numpy()
)


def damped(matrix, alpha):
    matrix = matrix.double().numpy()
    return alpha * matrix + (1 - alpha) * numpy.diag(numpy.diag(matrix))


def system(method, alpha):
    """Return the dense matrix and right-hand side on vec(W), W as (inputs, outputs)."""
    matrix, right = 0, 0
    for share, tensor, each in zip(SHARES, TENSORS, GIVEN, strict=True):
        outputs = damped(each["gradient"], alpha) if method == "mats_fisher" else numpy.eye(12)
        block = share * numpy.kron(damped(each["gram"], alpha), outputs)
        matrix, right = matrix + block, right + block @ tensor.double().numpy().T.ravel()
    return matrix, right


def merge(method, iterations, alpha=0.8, start=1.4):
    merged = METHODS[method](
        TENSORS, BASE, statistics=GIVEN, weight=WEIGHT, alpha=alpha, iterations=iterations, start=start
    )
    return merged.double().numpy()


@pytest.mark.parametrize("method", ["mats", "mats_fisher"])
def test_converges_to_the_solution_of_the_linear_system(method):
    matrix, right = system(method, 0.8)
    solution = numpy.linalg.solve(matrix, right).reshape(10, 12).T
    numpy.testing.assert_allclose(merge(method, 500), solution, rtol=1e-4, atol=1e-4)
    assert numpy.abs(merge(method, 2) - solution).max() > 1e-2


@pytest.mark.parametrize("iterations", [1, 3, 7])
@pytest.mark.parametrize("method", ["mats", "mats_fisher"])
def test_iterates_are_those_of_scipy(method, iterations):
    matrix, right = system(method, 0.8)
    operator = LinearOperator(matrix.shape, matvec=lambda v: matrix @ v)
    iterate, _ = cg(operator, right, x0=START.T.ravel(), maxiter=iterations, rtol=0.0)
    numpy.testing.assert_allclose(merge(method, iterations), iterate.reshape(10, 12).T, rtol=1e-4, atol=1e-5)


def test_without_off_diagonal_entries_converges_to_regmean():
    exact = METHODS["regmean"](TENSORS, statistics=GIVEN, weight=WEIGHT, alpha=0.3, ridge=0.0)
    numpy.testing.assert_allclose(merge("mats", 300, alpha=0.3), exact.numpy(), atol=1e-4)


@pytest.mark.parametrize("method", ["mats", "mats_fisher"])
def test_no_iteration_and_no_statistics_give_the_start(method):
    numpy.testing.assert_allclose(merge(method, 0), START, atol=1e-5)
    merged = METHODS[method](TENSORS, BASE, statistics=[{}] * 3, weight=WEIGHT, start=1.4)
    numpy.testing.assert_allclose(merged.numpy(), START, atol=1e-5)


def test_inputs_that_no_model_saw_stay_at_the_start():
    silent = []
    for each in GIVEN:
        gram = each["gram"].clone()
        gram[4], gram[:, 4] = 0, 0
        silent.append({**each, "gram": gram})
    merged = METHODS["mats"](TENSORS, BASE, statistics=silent, weight=WEIGHT, iterations=100, start=1.4)
    assert torch.allclose(merged[:, 4].double(), torch.tensor(START[:, 4]), atol=1e-5)
    assert not torch.allclose(merged[:, 3].double(), torch.tensor(START[:, 3]), atol=1e-2)


def test_normalised_gradients_do_not_let_a_model_of_large_gradients_win():
    loud = [{**each, "gradient": each["gradient"] * factor} for each, factor in zip(GIVEN, (1, 1e6, 1), strict=True)]
    merges = {
        (normalize, name): METHODS["mats_fisher"](
            TENSORS, BASE, statistics=given, weight=WEIGHT, iterations=200, normalize=normalize
        )
        for normalize in (False, True)
        for name, given in (("plain", GIVEN), ("loud", loud))
    }
    assert torch.allclose(merges[True, "plain"], merges[True, "loud"], atol=1e-4)
    assert not torch.allclose(merges[False, "plain"], merges[False, "loud"], atol=0.1)
