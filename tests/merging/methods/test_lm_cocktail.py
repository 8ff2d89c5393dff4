"""LM-Cocktail's weights against scipy's softmax."""

import numpy
import pytest
import torch
from scipy.special import softmax

from evomerge.errors import MergeError
from evomerge.merging import METHODS
from evomerge.testing.merge_methods import draw

COCKTAIL = METHODS["lm_cocktail"]
TENSORS = draw(3)
LOSSES = [2.0, 0.5, 1.1]
GIVEN = [{"loss": torch.tensor(loss, dtype=torch.float64)} for loss in LOSSES]


@pytest.mark.parametrize("temperature", [0.3, 1.0, 5.0])
def test_equals_the_formula(temperature):
    shares = softmax(-numpy.array(LOSSES) / temperature)
    expected = sum(share * tensor.double().numpy() for share, tensor in zip(shares, TENSORS, strict=True))
    merged = COCKTAIL(TENSORS, statistics=GIVEN, temperature=temperature)
    numpy.testing.assert_allclose(merged.numpy(), expected, atol=1e-6)


def test_cold_takes_the_best_model_and_unknown_losses_the_average():
    assert torch.allclose(COCKTAIL(TENSORS, statistics=GIVEN, temperature=1e-6), TENSORS[1])
    assert torch.allclose(COCKTAIL(TENSORS, statistics=[{}] * 3), sum(TENSORS) / 3, atol=1e-6)


def test_a_loss_that_is_missing_for_one_model_is_told():
    with pytest.raises(MergeError, match="needs the loss of every model"):
        COCKTAIL(TENSORS, statistics=[*GIVEN[:2], {}])
