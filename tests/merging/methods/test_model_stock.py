"""Model Stock against the paper's ratio, in float64."""

import pytest
import torch

from evomerge.merging import METHODS
from evomerge.testing.merge_methods import fine_tuned

STOCK = METHODS["model_stock"]


def naive_stock(base, models):
    """Jang, Yun and Han 2024, Eqs. 3 and 6, on vectors."""
    moves = [m - base for m in models]
    pairs = [(i, j) for i in range(len(moves)) for j in range(i)]
    cosines = [moves[i] @ moves[j] / (moves[i].norm() * moves[j].norm()).clamp(min=1e-6) for i, j in pairs]
    cosine = sum(cosines) / len(cosines)
    t = len(moves) * cosine / (1 + (len(moves) - 1) * cosine)
    return t * sum(models) / len(models) + (1 - t) * base


@pytest.mark.parametrize("shape", [(40,), (6, 12), (3, 4, 8)], ids=str)
@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("filter_wise", [False, True])
def test_the_angle_says_how_far_to_go(shape, count, dtype, filter_wise):
    base, models = fine_tuned(shape, count, seed=count, dtype=dtype)
    exact = [t.double().reshape(-1, shape[-1] if filter_wise else t.numel()) for t in (base, *models)]
    expected = torch.stack([naive_stock(row[0], list(row[1:])) for row in zip(*exact, strict=True)]).reshape(shape)
    merged = STOCK(models, base, filter_wise=filter_wise, chunk=7)
    assert torch.allclose(merged.double(), expected, atol=2e-5)


def test_orthogonal_models_stay_at_the_base_and_equal_ones_are_reached():
    base = torch.zeros(4)
    first, second = torch.tensor([1.0, 0, 0, 0]), torch.tensor([0, 2.0, 0, 0])
    assert torch.allclose(STOCK([first, second], base), base)
    assert torch.allclose(STOCK([first, first], base), first)


@pytest.mark.parametrize("filter_wise", [False, True])
def test_opposite_models_stay_at_the_base(filter_wise):
    base, (model,) = fine_tuned((5, 8), 1)
    opposite = 2 * base - model
    assert torch.allclose(STOCK([model, opposite], base, filter_wise=filter_wise), base, atol=1e-5)


def test_a_tensor_that_only_one_model_has_is_taken_as_it_is():
    base, models = fine_tuned((5, 8), 1)
    assert torch.equal(STOCK(models, base), models[0])
