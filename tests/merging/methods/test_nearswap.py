"""NearSwap: each entry goes towards the other model by t at most."""

import pytest
import torch

from evomerge.merging import METHODS
from evomerge.testing.merge_methods import fine_tuned

NEARSWAP = METHODS["nearswap"]


@pytest.mark.parametrize("t", [0.0, 0.0001, 0.05, 0.2, 100.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_entries_move_by_t_at_most(t, dtype):
    base, (model,) = fine_tuned((30, 20), 1, dtype=dtype)
    change = (model.double() - base.double()).clamp(-t, t)
    merged = NEARSWAP([model], base, t=t)
    assert torch.allclose(merged.double(), base.double() + change, atol=1e-6)


def test_the_ends_are_the_models():
    base, (model,) = fine_tuned((30,), 1)
    assert torch.equal(NEARSWAP([model], base, t=0.0), base)
    assert torch.equal(NEARSWAP([model], base, t=-1.0), base)
    assert torch.allclose(NEARSWAP([model], base, t=1e3), model)
