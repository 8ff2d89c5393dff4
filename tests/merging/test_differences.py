"""Task vectors in float32 and sums on a base."""

import pytest
import torch

from evomerge.errors import MergeError
from evomerge.merging.chunks import CHUNK
from evomerge.merging.differences import differences, optional_weight, searched_lambda, sum_on
from evomerge.testing.merge_methods import fine_tuned


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_differences_are_the_exact_ones_to_float32(dtype):
    base, models = fine_tuned((50, 20), 3, dtype=dtype)
    exact = [(model.double() - base.double()).float() for model in models]
    assert all(map(torch.equal, differences(models, base), exact))


def test_inputs_are_not_written_to():
    base, models = fine_tuned((5, 4), 2)
    untouched = [tensor.clone() for tensor in (base, *models)]
    sum_on(base, [vector.mul_(2) for vector in differences(models, base)], [1.0, 0.5], 2.0)
    assert all(map(torch.equal, (base, *models), untouched))


def test_sums_are_the_same_in_pieces():
    size = CHUNK + 17
    base, models = fine_tuned((size,), 2, dtype=torch.bfloat16)
    weights, factor = [0.5, -0.25], 1.5
    expected = base.double() + factor * sum(w * m.double() for w, m in zip(weights, models, strict=True))
    summed = sum_on(base, models, weights, factor)
    assert summed.dtype == torch.float32
    assert torch.allclose(summed.double(), expected, atol=1e-6)
    middle = slice(CHUNK - 5, None)
    assert torch.equal(summed[middle], sum_on(base[middle], [m[middle] for m in models], weights, factor))


def test_vectors_of_no_weight_are_not_read():
    base = torch.ones(3)
    bad = torch.full((3,), float("nan"))
    assert torch.equal(sum_on(base, [bad], [0.0], 1.0), base)
    assert torch.equal(sum_on(base, [bad], [1.0], 0.0), base)


def test_a_base_is_asked_for():
    with pytest.raises(MergeError, match="name one as base_model"):
        differences([torch.ones(2)], None)
    with pytest.raises(MergeError, match="name one as base_model"):
        sum_on(None, [torch.ones(2)], [1.0], 1.0)


def test_parameters_keep_the_names_and_meanings_of_the_shared_ones():
    weight, factor = optional_weight(), searched_lambda(0.5, 2.0)
    assert (weight.name, weight.default, weight.required, weight.per_model) == ("weight", 1.0, False, True)
    assert (factor.name, factor.default, factor.searchable) == ("lambda", 1.0, True)
