"""Model Breadcrumbs against sorting and counting in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.merging import METHODS, chunks, magnitudes
from evomerge.testing.merge_methods import fine_tuned

BREADCRUMBS, WITH_SIGNS = METHODS["breadcrumbs"], METHODS["breadcrumbs_ties"]


def thinned(vector, density, gamma):
    """Davari and Belilovsky 2024, Eq. 2: neither the largest nor the smallest magnitudes."""
    if density >= 1:
        return vector
    size = vector.numel()
    kept = int(density * size)
    skipped = min(int(gamma * size), size - kept)
    order = vector.abs().argsort(descending=True)[skipped : skipped + kept]
    result = torch.zeros_like(vector)
    result[order] = vector[order]
    return result


def rescaled(vector, whole):
    return vector * whole.abs().sum() / vector.abs().sum() if vector.any() else vector


@pytest.mark.parametrize("long", [False, True])
@settings(deadline=None, max_examples=60)
@given(
    density=st.lists(st.floats(0, 1), min_size=2, max_size=2),
    gamma=st.lists(st.floats(0, 1), min_size=2, max_size=2),
    seed=st.integers(0, 100),
    rescale=st.booleans(),
)
def test_the_middle_of_each_task_vector_is_summed(long, density, gamma, seed, rescale):
    with pytest.MonkeyPatch.context() as patch:
        if long:
            patch.setattr(magnitudes, "SHORT", 0)
            patch.setattr(chunks, "CHUNK", 32)
        base, models = fine_tuned((9, 13), 2, seed=seed)
        weight = [0.4, 1.1]
        numbers = {"density": density, "gamma": gamma, "weight": weight, "lambda": 0.7, "rescale": rescale}
        merged = BREADCRUMBS(models, base, **numbers, chunk=29)
    vectors = [(m - base).reshape(-1) for m in models]
    parts = [thinned(*each) for each in zip(vectors, density, gamma, strict=True)]
    if rescale:
        parts = [rescaled(part, vector) for part, vector in zip(parts, vectors, strict=True)]
    expected = base.double() + 0.7 * sum(w * p.double() for w, p in zip(weight, parts, strict=True)).reshape(9, 13)
    assert torch.allclose(merged.double(), expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
def test_as_many_entries_are_kept_where_magnitudes_are_equal(monkeypatch, dtype, density):
    base = torch.zeros(1000, dtype=dtype)
    model = torch.randint(1, 4, (1000,), generator=torch.Generator().manual_seed(0)).to(dtype)
    for short in (magnitudes.SHORT, 0):
        monkeypatch.setattr(magnitudes, "SHORT", short)
        merged = BREADCRUMBS([model], base, weight=1.0, density=density, gamma=0.07)
        assert int((merged != 0).sum()) == int(density * 1000)


def test_nothing_is_left_out_at_the_top_with_gamma_zero():
    base, models = fine_tuned((50,), 1)
    numbers = {"weight": 1.0, "density": 0.3}
    assert torch.equal(BREADCRUMBS(models, base, gamma=0.0, **numbers), WITH_SIGNS(models, base, gamma=0.0, **numbers))
    ties = METHODS["ties"](models, base, normalize=False, **numbers)
    assert torch.allclose(WITH_SIGNS(models, base, gamma=0.0, **numbers), ties)


def test_signs_are_elected_among_what_is_left():
    base = torch.zeros(4)
    models = [torch.tensor([5.0, 1.0, 2.0, 0.1]), torch.tensor([-5.0, -1.5, 3.0, 0.2])]
    merged = WITH_SIGNS(models, base, weight=1.0, density=0.5, gamma=0.25)
    assert torch.allclose(merged, torch.tensor([0.0, -1.5, 5.0, 0.0]))
