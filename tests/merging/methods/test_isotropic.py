"""Isotropic merging against the paper's algorithms in float64, with numpy's decompositions."""

import numpy as np
import pytest
import torch

from evomerge.errors import MergeError
from evomerge.merging import METHODS
from evomerge.merging.methods.isotropic import subspace_sizes
from evomerge.testing.merge_methods import fine_tuned

ISO_C, ISO_CTS = METHODS["iso_c"], METHODS["iso_cts"]
SHAPES = [(12, 10), (9, 23), (31, 8), (16, 16)]


def task_matrices(base, models, weights):
    return [w * (m.double() - base.double()).numpy() for w, m in zip(weights, models, strict=True)]


def naive_iso_c(matrices):
    """Iso-C as Marczak et al. 2025 define it."""
    u, s, vh = np.linalg.svd(sum(matrices), full_matrices=False)
    return u @ np.diag(np.full_like(s, s.mean())) @ vh


def naive_iso_cts(matrices, fraction):
    """Iso-CTS as Marczak et al. 2025 define it, with the sizes of the authors' code."""
    rank, count = min(matrices[0].shape), len(matrices)
    common = int(rank * fraction)
    common = rank - round((rank - common) / count) * count
    own = (rank - common) // count
    u, s, vh = np.linalg.svd(sum(matrices), full_matrices=False)
    left, values, right = [u[:, :common]], [s[:common]], [vh[:common]]
    outside = np.eye(len(u)) - left[0] @ left[0].T
    for matrix in matrices:
        u, s, vh = np.linalg.svd(outside @ matrix, full_matrices=False)
        left.append(u[:, :own])
        values.append(s[:own])
        right.append(vh[:own])
    (p, _, q), (r, _, t) = (np.linalg.svd(np.concatenate(*a), full_matrices=False) for a in ((left, 1), (right, 0)))
    return p @ q @ np.diag(np.full(rank, np.concatenate(values).mean())) @ r @ t


def relative(merged, base, expected):
    """Largest difference between the merged and the expected task vector, over the largest entry of the latter."""
    found = merged.double().numpy() - base.double().numpy()
    return np.abs(found - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("weights", ["paper", "equal", "any"])
def test_iso_c_is_the_papers(shape, count, dtype, weights):
    base, models = fine_tuned(shape, count, seed=count, dtype=dtype)
    weight = {"paper": [1.0], "equal": [-0.7], "any": [0.3, 1.2, -0.4, 0.0, 0.9]}[weights]
    weight = (weight * count)[:count]
    expected = naive_iso_c(task_matrices(base, models, weight))
    numbers = {} if weights == "paper" else {"weight": weight}
    merged = ISO_C(models, base, **numbers)
    # The prepared matrix is rounded to bfloat16, the others to float32 singular vectors.
    bound = 1e-2 if dtype == torch.bfloat16 else 1e-4
    assert relative(merged, base, expected) < bound
    assert relative(ISO_C(models, base, **numbers, **{"lambda": 1.7}), base, 1.7 * expected) < bound


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("common", [0.8, 0.5, 0.65])
@pytest.mark.parametrize("weights", ["paper", "any"])
def test_iso_cts_is_the_papers(shape, count, common, weights):
    base, models = fine_tuned(shape, count, seed=count)
    weight = [1.0] * count if weights == "paper" else [0.3, 1.2, -0.4, 0.6, 0.9][:count]
    expected = naive_iso_cts(task_matrices(base, models, weight), common)
    merged = ISO_CTS(models, base, weight=weight, common=common, **{"lambda": 0.8})
    assert relative(merged, base, 0.8 * expected) < 3e-4


@pytest.mark.parametrize("rank", range(1, 40))
@pytest.mark.parametrize("count", range(1, 6))
def test_directions_add_up_to_the_rank(rank, count):
    for common in (0.0, 0.5, 0.8, 1.0):
        if count <= rank:
            shared, own = subspace_sizes(rank, count, common)
            assert shared >= 0
            assert shared + count * own == rank


def test_all_singular_values_are_equal():
    base, models = fine_tuned((14, 20), 3)
    for method in (ISO_C, ISO_CTS):
        values = torch.linalg.svdvals(method(models, base) - base)
        assert torch.allclose(values, values.mean(), rtol=1e-4)


@pytest.mark.parametrize("method", [ISO_C, ISO_CTS], ids=lambda m: m.name)
def test_experts_in_one_tensor_are_merged_as_if_apart(method):
    base, models = fine_tuned((3, 9, 11), 2)
    merged = method(models, base, **{"lambda": 0.6})
    apart = [method([m[e] for m in models], base[e], **{"lambda": 0.6}) for e in range(3)]
    assert torch.equal(merged, torch.stack(apart))


@pytest.mark.parametrize("method", [ISO_C, ISO_CTS], ids=lambda m: m.name)
@pytest.mark.parametrize("shape", [(7,), (4, 3, 2, 2), (6, 5, 3)], ids=str)
def test_what_is_no_matrix_is_averaged(method, shape):
    base, models = fine_tuned(shape, 3)
    merged = method(models, base, weight=[1.0, 0.5, 2.0], **{"lambda": 0.9})
    task = (models[0] - base) + 0.5 * (models[1] - base) + 2 * (models[2] - base)
    assert torch.allclose(merged, base + 0.3 * task, atol=1e-6)


@pytest.mark.parametrize("method", [ISO_C, ISO_CTS], ids=lambda m: m.name)
def test_task_vectors_of_low_rank_stay_in_their_directions(method):
    generator = torch.Generator().manual_seed(3)
    base = torch.zeros(20, 16)
    models = [torch.randn(20, 2, generator=generator) @ torch.randn(2, 16, generator=generator) for _ in range(3)]
    merged = method(models, base)
    values = torch.linalg.svdvals(merged)
    assert (values > 1e-4 * values[0]).sum() == 6
    # Nothing appears outside the rows and columns that the models moved.
    columns = torch.linalg.svd(torch.cat(models, 1)).U[:, :6]
    assert torch.allclose(columns @ (columns.T @ merged), merged, atol=1e-4)
    still = method([base, base], base)
    assert torch.equal(still, base)


@pytest.mark.parametrize("method", [ISO_C, ISO_CTS], ids=lambda m: m.name)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(method, bad):
    base, models = fine_tuned((9, 9), 2)
    models[1][2, 3] = bad
    with pytest.raises(MergeError, match="not finite"):
        method(models, base)


def test_prepared_matrix_is_all_that_a_merge_of_equal_weights_needs(monkeypatch):
    base, models = fine_tuned((9, 9), 2)
    prepared = [method.prepared_for(models, base) for method in (ISO_C, ISO_CTS)]
    monkeypatch.setattr(torch.linalg, "svd", None)
    for method, state in zip((ISO_C, ISO_CTS), prepared, strict=True):
        method(models, base, prepared=state, weight=[0.5, 0.5], **{"lambda": 0.3})
