"""Arcee Fusion against its definition, and what of it half precision and sampling leave."""

import pytest
import torch

from evomerge.merging import METHODS
from evomerge.merging.methods import arcee_fusion as module
from evomerge.testing.merge_methods import fine_tuned

FUSION = METHODS["arcee_fusion"]


def naive_fusion(base, model):
    """Importance, quartiles and mask in float64."""
    p, q = (torch.softmax(t.double(), dim=-1) for t in (model, base))
    divergence = (p * torch.log(p / q)).sum(-1, keepdim=True)
    scores = (model.double() - base.double()).abs() * divergence
    rising = scores.reshape(-1).sort().values
    first, median, third = (rising[int(share * (rising.numel() - 1))] for share in (0.25, 0.5, 0.75))
    return torch.where(scores >= median + 1.5 * (third - first), model, base)


@pytest.mark.parametrize("shape", [(200,), (30, 40), (5, 6, 20)], ids=str)
def test_important_entries_are_taken(shape):
    base, (model,) = fine_tuned(shape, 1, seed=2)
    merged, expected = FUSION([model], base, chunk=37), naive_fusion(base, model)
    # Scores this close to the threshold fall on either side of it in float32.
    assert int((~torch.isclose(merged, expected, atol=1e-6)).sum()) <= 0.002 * base.numel()
    assert 0 < int((merged != base).sum()) < base.numel() / 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_in_half_precision_every_entry_is_one_of_the_two(dtype):
    base, (model,) = fine_tuned((30, 40), 1, dtype=dtype)
    merged, eps = FUSION([model], base).to(dtype), torch.finfo(dtype).eps
    assert ((merged == base) | torch.isclose(merged, model, rtol=2 * eps, atol=eps)).all()


def test_equal_models_and_scalars_are_taken_as_they_are():
    base, (model,) = fine_tuned((), 1)
    assert torch.allclose(FUSION([model], base), model)
    assert torch.equal(FUSION([base], base), base)


def test_quartiles_of_long_tensors_are_those_of_a_sample(monkeypatch):
    base, (model,) = fine_tuned((100, 200), 1)
    exact = FUSION.prepared_for([model], base)
    monkeypatch.setattr(module, "SAMPLED", 10_000)
    first, second = (FUSION.prepared_for([model], base) for _ in range(2))
    assert first.threshold == second.threshold
    assert first.threshold != exact.threshold
    assert first.threshold == pytest.approx(exact.threshold, rel=0.1)
