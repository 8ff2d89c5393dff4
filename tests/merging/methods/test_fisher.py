"""Fisher-weighted averaging against the paper's formula, in float64."""

import numpy
import pytest
import torch

from evomerge.merging import METHODS
from evomerge.testing.merge_methods import draw, statistics

FISHER = METHODS["fisher"]
TENSORS = draw(3)
GIVEN = [statistics(seed=index) for index in range(3)]


def formula(weight, floor, sizes):
    information = [numpy.maximum(g["fisher"].double().numpy() / s, floor) for g, s in zip(GIVEN, sizes, strict=True)]
    mass = [w * f for w, f in zip(weight, information, strict=True)]
    return sum(m * t.double().numpy() for m, t in zip(mass, TENSORS, strict=True)) / sum(mass)


@pytest.mark.parametrize("floor", [0.0, 0.8])
@pytest.mark.parametrize("normalize", [False, True])
def test_equals_the_formula(floor, normalize):
    weight, sizes = [0.2, 1.0, 0.7], [0.5, 2.0, 1.0]
    given = [g | {"fisher_size": torch.tensor(s)} for g, s in zip(GIVEN, sizes, strict=True)]
    merged = FISHER(TENSORS, statistics=given, weight=weight, floor=floor, normalize=normalize)
    numpy.testing.assert_allclose(
        merged.numpy(), formula(weight, floor, sizes if normalize else [1, 1, 1]), rtol=1e-4, atol=1e-5
    )


def test_equal_information_gives_the_weighted_average():
    given = [GIVEN[0]] * 3
    merged = FISHER(TENSORS, statistics=given, weight=[1.0, 2.0, 1.0])
    assert torch.allclose(merged, METHODS["linear"](TENSORS, weight=[1.0, 2.0, 1.0]), atol=1e-6)


def test_an_entry_that_one_model_alone_depends_on_is_that_models():
    given = [{**g, "fisher": g["fisher"].clone()} for g in GIVEN]
    for index, each in enumerate(given):
        each["fisher"][0, 0] = float(index == 2)
    assert torch.allclose(FISHER(TENSORS, statistics=given, floor=0.0)[0, 0], TENSORS[2][0, 0])


def test_entries_and_tensors_without_information_are_averaged():
    average = METHODS["linear"](TENSORS, weight=[0.5, 0.25, 0.25])
    nothing = [{**g, "fisher": torch.zeros(12, 10)} for g in GIVEN]
    for given in (nothing, [{}, {}, {}], [GIVEN[0], GIVEN[1], {}], None):
        merged = FISHER(TENSORS, statistics=given, weight=[1.0, 0.5, 0.5], floor=0.0)
        assert torch.allclose(merged, average, atol=1e-6)
