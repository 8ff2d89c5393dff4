"""AIM against its equation, in float64."""

import numpy
import pytest
import torch

from evomerge.merging.aim import relax

MERGED, BASE = torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(0))
SCALE = torch.tensor([0.1, 3.0, 0.0, 1.5, 2.0])


@pytest.mark.parametrize("omega", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("transposed", [False, True])
def test_equals_the_equation(omega, transposed):
    merged, base, scale = MERGED, BASE, SCALE[None, :]
    if transposed:
        merged, base, scale = merged.T, base.T, scale.T
    start, importance = base.double().numpy(), scale.double().numpy() / 3.0
    expected = start + (1 - importance * (1 - omega)) * (merged.double().numpy() - start)
    numpy.testing.assert_allclose(relax(merged, base, scale, omega).numpy(), expected, atol=1e-6)


def test_most_active_channel_keeps_the_share_omega_and_a_silent_one_all():
    change = (relax(MERGED, BASE, SCALE[None, :], 0.25) - BASE) / (MERGED - BASE)
    assert torch.allclose(change[:, 1], torch.tensor(0.25), atol=1e-4)
    assert torch.allclose(change[:, 2], torch.tensor(1.0), atol=1e-4)


@pytest.mark.parametrize("scale", [None, torch.zeros(1, 5)])
def test_without_known_activations_nothing_changes(scale):
    assert torch.equal(relax(MERGED, BASE, scale, 0.3), MERGED)


def test_inputs_are_left_alone_and_narrow_bases_are_widened():
    merged, base = MERGED.clone(), BASE.bfloat16()
    assert relax(merged, base, SCALE[None, :], 0.3).dtype == torch.float32
    assert torch.equal(merged, MERGED)
