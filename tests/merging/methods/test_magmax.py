"""MagMax against the paper's definition, entry by entry."""

import pytest
import torch

from evomerge.merging import METHODS
from evomerge.testing.merge_methods import fine_tuned

MAGMAX = METHODS["magmax"]


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_each_entry_moves_as_far_as_the_model_that_moved_it_furthest(count, dtype):
    base, models = fine_tuned((9, 7), count, seed=count, dtype=dtype)
    weight, factor = [0.6, 1.4, -1.1, 0.9][:count], 0.5
    expected = torch.empty(9, 7, dtype=torch.float64)
    for row in range(9):
        for column in range(7):
            start = float(base[row, column])
            moves = [w * (float(m[row, column]) - start) for w, m in zip(weight, models, strict=True)]
            expected[row, column] = start + factor * max(moves, key=abs)
    merged = MAGMAX(models, base, weight=weight, **{"lambda": factor})
    assert torch.allclose(merged.double(), expected, atol=1e-6)


def test_of_equal_magnitudes_the_later_models_is_taken():
    base = torch.zeros(3)
    models = [torch.tensor([1.0, -1.0, 2.0]), torch.tensor([-1.0, 1.0, 1.0])]
    assert MAGMAX(models, base).tolist() == [-1.0, 1.0, 2.0]
    assert MAGMAX(models[::-1], base).tolist() == [1.0, -1.0, 2.0]
