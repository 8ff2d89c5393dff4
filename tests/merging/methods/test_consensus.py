"""Consensus merging against the authors' steps in float64."""

import pytest
import torch

from evomerge.merging import METHODS
from evomerge.testing.merge_methods import fine_tuned

TA, TIES = METHODS["consensus_ta"], METHODS["consensus_ties"]


def exact(base, models, weight):
    return torch.stack([w * (m.double() - base.double()) for w, m in zip(weight, models, strict=True)])


def agreed(merged, tasks, thresholds, agreement):
    """TALL masks and their consensus, as the authors compute them from weights."""
    zero = torch.zeros_like(merged)  # θ₀; the others relative to it
    masks = [(zero - t).abs() > (merged - t).abs() * h for t, h in zip(tasks, thresholds, strict=True)]
    return merged * (torch.stack(masks).double().sum(0) >= agreement)


def elected(tasks, density):
    """TIES with a disjoint sum."""
    size = tasks[0].numel()
    kept = torch.zeros_like(tasks)
    for task, row in zip(tasks, kept, strict=True):
        places = task.abs().flatten().argsort(descending=True, stable=True)[: max(1, int(density * size))]
        row.view(-1)[places] = task.flatten()[places]
    sign = torch.where(kept.sum(0) >= 0, 1.0, -1.0)
    return torch.where(kept * sign > 0, kept, 0).sum(0)


@pytest.mark.parametrize("agreement", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("threshold", [[0.2] * 3, [0.4] * 3, [0.6, 0.2, 1.0]], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_consensus_ta_is_the_authors(agreement, threshold, dtype):
    base, models = fine_tuned((40, 30), 3, seed=7, dtype=dtype)
    weight = [1.0, 0.7, 1.2]
    tasks = exact(base, models, weight)
    expected = base.double() + 0.6 * agreed(tasks.sum(0), tasks, threshold, agreement)
    merged = TA(models, base, weight=weight, threshold=threshold, agreement=agreement, **{"lambda": 0.6})
    assert torch.allclose(merged.double(), expected, atol=1e-6)


@pytest.mark.parametrize("agreement", [1, 2, 3])
@pytest.mark.parametrize("density", [0.2, 0.55, 1.0])
def test_consensus_ties_is_the_authors(agreement, density):
    base, models = fine_tuned((40, 30), 3, seed=8)
    tasks = exact(base, models, [1.0] * 3)
    expected = base.double() + 0.6 * agreed(elected(tasks, density), tasks, [0.5] * 3, agreement)
    merged = TIES(models, base, density=density, threshold=0.5, agreement=agreement, **{"lambda": 0.6})
    assert torch.allclose(merged.double(), expected, atol=1e-6)


def test_without_agreement_asked_for_it_is_task_arithmetic():
    base, models = fine_tuned((40, 30), 3)
    assert torch.allclose(TA(models, base, agreement=0), METHODS["task_arithmetic"](models, base, weight=1.0))


def test_entries_that_one_task_alone_has_a_use_for_stay_at_the_base():
    base = torch.zeros(3)
    models = [torch.tensor([5.0, 1.0, -1.0]), torch.tensor([0.1, 1.0, 2.0])]
    # First entry: of use to the first alone. Second: to both. Third: to the second alone.
    assert TA(models, base, threshold=0.9).tolist() == [0.0, 2.0, 0.0]
    assert TA(models, base, threshold=0.9, agreement=1)[0] == pytest.approx(5.1)


def test_more_than_all_models_leave_the_base():
    base, models = fine_tuned((4, 3), 2)
    assert torch.equal(TA(models, base, agreement=3), base)
    assert torch.equal(TIES(models, base, agreement=3), base)
