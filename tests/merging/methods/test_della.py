"""DELLA: how often entries are kept, by rank, and what that does to the sum."""

import pytest
import torch

from evomerge.errors import MergeError
from evomerge.merging import METHODS, chunks
from evomerge.merging.methods import della as module
from evomerge.testing.merge_methods import fine_tuned

LINEAR, DELLA = METHODS["della_linear"], METHODS["della"]
ROWS, LENGTH = 400, 500


def kept(model, density, epsilon, **more):
    base = torch.zeros_like(model)
    numbers = {"weight": 1.0, "density": density, "epsilon": epsilon, "rescale": False}
    return LINEAR([model], base, seeds=[7], **numbers, **more) != 0


@pytest.fixture(scope="module")
def model():
    return torch.randn(ROWS, LENGTH, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("density", "epsilon"), [(0.5, 0.2), (0.3, 0.1), (0.2, 0.0), (0.8, 0.15)])
def test_entries_are_kept_at_the_probability_of_their_rank_in_the_row(model, density, epsilon):
    mask = kept(model, density, epsilon)
    ranks = model.abs().argsort(dim=1).argsort(dim=1) * 10 // LENGTH
    for part in range(10):
        share = float(mask[ranks == part].float().mean())
        expected = density - epsilon + 2 * epsilon * (part + 0.5) / 10  # Deep et al. 2024, Eq. 3
        deviation = (expected * (1 - expected) / (ROWS * LENGTH / 10)) ** 0.5
        assert abs(share - expected) < 4 * deviation + epsilon / module.TOP


def test_rows_are_ranked_by_themselves(model):
    factors = torch.logspace(-3, 3, ROWS).unsqueeze(1)
    assert torch.equal(kept(model * factors, 0.5, 0.3), kept(model, 0.5, 0.3))


@pytest.mark.parametrize("shape", [(6,), (3, 6), (3, 6, 4), (3, 6, 2, 2)], ids=str)
def test_ranks_are_those_along_the_second_dimension(monkeypatch, shape):
    monkeypatch.setattr(chunks, "CHUNK", 10)
    model = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    (state,) = module.ranked([model.reshape(-1)], torch.zeros(model.numel()), [0], shape)
    dimension = 0 if len(shape) < 2 else 1
    expected = (model.abs().argsort(dim=dimension).argsort(dim=dimension) / 5 * module.TOP).round()
    assert torch.equal(state.rank.tensor.reshape(shape).float(), expected)
    assert state.norm == pytest.approx(float(model.abs().sum()), rel=1e-5)
    assert state.upper == pytest.approx(float((model.abs() * expected / module.TOP).sum()), rel=1e-5)


@pytest.mark.parametrize("density", [0.1, 0.3, 0.6, 0.97])
def test_the_share_kept_is_the_density_also_where_epsilon_has_to_shrink(model, density):
    share = float(kept(model, density, 0.4).float().mean())
    assert share == pytest.approx(density, abs=4 * (0.25 / model.numel()) ** 0.5)


def test_ends_of_the_density_keep_all_and_nothing(model):
    assert kept(model, 1.0, 0.3).all()
    assert not kept(model, 0.0, 0.3).any()


def test_a_higher_density_keeps_what_a_lower_one_kept(model):
    assert not (kept(model, 0.3, 0.1) & ~kept(model, 0.6, 0.1)).any()


@pytest.mark.parametrize("method", [LINEAR, DELLA], ids=["linear", "ties"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rescaling_keeps_the_norm_of_the_task_vector(model, method, dtype):
    base = torch.zeros(ROWS, LENGTH, dtype=dtype)
    merged = method([model.to(dtype)], base, seeds=[3], weight=1.0, density=0.4, epsilon=0.2)
    assert float(merged.abs().sum()) == pytest.approx(float(model.abs().sum()), rel=0.01)


def test_seeds_decide_what_is_kept_and_are_needed(model):
    base = torch.zeros_like(model)
    numbers = {"weight": 1.0, "density": 0.5}
    first, again, other = (LINEAR([model], base, seeds=[seed], **numbers) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    with pytest.raises(MergeError, match="it needs one seed per tensor, 1 of them"):
        LINEAR([model], base, **numbers)


def test_models_are_weighted_summed_and_elected():
    base, models = fine_tuned((20, 30), 2, seed=4)
    numbers = {"seeds": [0, 1], "density": 0.6, "epsilon": 0.1}
    single = [LINEAR([m], base, **{**numbers, "seeds": [s]}, weight=1.0) - base for s, m in enumerate(models)]
    summed = LINEAR(models, base, weight=[0.3, -0.8], **{"lambda": 0.5}, **numbers)
    assert torch.allclose(summed, base + 0.5 * (0.3 * single[0] - 0.8 * single[1]), atol=1e-5)
    winner = torch.where(single[0] + single[1] >= 0, 1.0, -1.0)
    agreeing = [torch.where(v * winner > 0, v, 0.0) for v in single]
    count = sum((v != 0).float() for v in agreeing).clamp(min=1)
    assert torch.allclose(DELLA(models, base, weight=1.0, **numbers), base + sum(agreeing) / count, atol=1e-5)
