"""PCB-Merging against the authors' steps in float64."""

import numpy as np
import pytest
import torch

from evomerge.merging import METHODS
from evomerge.testing.merge_methods import fine_tuned

PCB = METHODS["pcb"]


def naive_pcb(tasks, density, weight):
    """Du et al. 2024, the steps of the released code on task vectors (models, entries)."""
    count, size = tasks.shape

    def clamp(x, low, high):
        rising = np.sort(x, axis=1)
        return np.clip(x, rising[:, [int(size * low)]], rising[:, [int(size * (1 - high) - 1)]])

    def normalise(x):
        low, high = x.min(1, keepdims=True), x.max(1, keepdims=True)
        return (x - low) / (high - low)

    size_of = clamp(np.abs(tasks), 0.0001, 0.0001)
    intra = np.exp(count * normalise(size_of) ** 2)
    inter = np.tanh(tasks * tasks.sum(0))
    scale = np.stack([normalise(clamp(row[None], 1 - d, 0))[0] for row, d in zip(intra * inter, density, strict=True)])
    return (np.sign(tasks) * size_of * weight * scale).sum(0) / np.maximum(scale.sum(0), 1e-12)


@pytest.mark.parametrize("size", [41, 1000, 30000])
@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("density", [0.05, 0.1, 0.8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_pcb_is_the_authors(size, count, density, dtype):
    base, models = fine_tuned((size,), count, seed=count, dtype=dtype)
    tasks = torch.stack([m.double() - base.double() for m in models]).numpy()
    expected = naive_pcb(tasks, [density] * count, np.ones((count, 1)))
    merged = PCB(models, base, density=density, **{"lambda": 1.3})
    found = merged.double().numpy() - base.double().numpy()
    assert np.abs(found - 1.3 * expected).max() < 1e-5


def test_each_model_has_its_density_and_weight():
    base, models = fine_tuned((5000,), 3, seed=9)
    tasks = torch.stack([m.double() - base.double() for m in models]).numpy()
    density, weight = [0.05, 0.3, 0.6], [1.2, 0.5, 0.9]
    expected = naive_pcb(tasks, density, np.array(weight)[:, None])
    merged = PCB(models, base, density=density, weight=weight)
    assert np.abs(merged.double().numpy() - base.double().numpy() - expected).max() < 1e-5


def test_chunks_change_no_bit():
    base, models = fine_tuned((5000,), 3)
    assert torch.equal(PCB(models, base), PCB(models, base, chunk=333))


def test_the_best_entry_always_counts():
    base, models = fine_tuned((17,), 1, seed=2)
    merged = PCB(models, base, density=0.01) - base
    assert merged.count_nonzero() == 1
    # The largest magnitude is clamped to the second largest, as the reference has it.
    second = (models[0] - base).abs().sort().values[-2]
    assert float(merged.abs().max()) == pytest.approx(float(second), rel=1e-5)


@pytest.mark.parametrize("size", [0, 1, 2, 3])
def test_the_shortest_vectors_are_merged(size):
    base, models = fine_tuned((size,), 2)
    assert PCB(models, base).isfinite().all()
    assert torch.equal(PCB([base, base], base), base)


def test_where_no_entry_counts_the_base_stays():
    base, models = fine_tuned((100,), 2)
    assert torch.equal(PCB(models, base, density=0.0), base)
