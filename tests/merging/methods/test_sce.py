"""SCE against its three steps written out in float64."""

import pytest
import torch

from evomerge.merging import METHODS, chunks, magnitudes
from evomerge.testing.merge_methods import fine_tuned

SCE = METHODS["sce"]


def naive_sce(base, models, share):
    """Wan et al. 2024, Section 3.3: select, calculate, erase."""
    vectors = torch.stack([m.double() - base.double() for m in models]).reshape(len(models), -1)
    if share < 1:
        variance = ((vectors - vectors.mean(0)) ** 2).mean(0)
        kept = int((variance > 0).sum() * share)
        selected = torch.zeros(vectors.shape[1], dtype=torch.float64)
        selected[variance.argsort(descending=True)[:kept]] = 1
        vectors = vectors * selected
    squares = (vectors**2).mean(1)
    weights = squares / squares.sum() if squares.sum() >= 1e-6 else torch.full_like(squares, 1 / len(models))
    winner = torch.where(vectors.sum(0) >= 0, 1.0, -1.0)
    weights = weights.unsqueeze(1) * (vectors.sign() == winner)
    merged = (vectors * weights).sum(0) / weights.sum(0).clamp(min=1e-6)
    return base.double() + merged.reshape(base.shape)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.2, 0.77, 1.0])
@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("long", [False, True])
def test_sce_selects_calculates_and_erases(monkeypatch, share, count, long):
    base, models = fine_tuned((17, 31), count, seed=count)
    models[0] = base + 2 * (models[0] - base)
    models[1][:5] = base[:5]
    if long:
        monkeypatch.setattr(magnitudes, "SHORT", 0)
        monkeypatch.setattr(chunks, "CHUNK", 50)
    merged = SCE(models, base, select_topk=share, chunk=97)
    assert torch.allclose(merged.double(), naive_sce(base, models, share), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_long_and_short_tensors_select_as_many_entries_of_equal_variance(monkeypatch, dtype):
    generator = torch.Generator().manual_seed(0)
    base = torch.zeros(600, dtype=dtype)
    models = [torch.randint(-2, 3, (600,), generator=generator).to(dtype) for _ in range(2)]
    variances = torch.stack(models).var(dim=0, unbiased=False)
    kept = int(variances.count_nonzero() * 0.5)
    for short in (magnitudes.SHORT, 0):
        monkeypatch.setattr(magnitudes, "SHORT", short)
        state = SCE.prepared_for(models, base)
        trim = SCE.reduce(models, base, prepared=state, select_topk=0.5).trim
        selected = magnitudes.trimmed(variances, trim)
        assert int(selected.count_nonzero()) == kept
        assert selected[selected != 0].min() >= variances[selected == 0].max()


def test_small_task_vectors_count_alike():
    base = torch.zeros(10)
    models = [torch.full((10,), 1e-4), torch.full((10,), 3e-4)]
    assert torch.allclose(SCE(models, base), torch.full((10,), 2e-4))


def test_nothing_selected_is_the_base():
    base, models = fine_tuned((30,), 2)
    assert torch.equal(SCE(models, base, select_topk=0.0), base)
    assert torch.equal(SCE(models[:1], base, select_topk=0.5), base)  # one model alone does not vary
