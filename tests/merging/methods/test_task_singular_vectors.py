"""TSV-Merge against the paper's algorithm in float64; R-TSVM against its formulas and its limits."""

import numpy as np
import pytest
import torch

from evomerge.errors import MergeError
from evomerge.merging import METHODS
from evomerge.merging.methods.task_singular_vectors import outlier_share, zero_share
from evomerge.testing.merge_methods import fine_tuned

TSV, R_TSVM = METHODS["tsv_merge"], METHODS["r_tsvm"]
SHAPES = [(12, 10), (9, 23), (31, 8), (16, 16)]


def naive_tsv(matrices, ranks=None):
    """Gargiulo et al. 2025: truncate, put side by side, orthogonalise, multiply."""
    ranks = ranks or [min(matrices[0].shape) // len(matrices)] * len(matrices)
    parts = [np.linalg.svd(matrix, full_matrices=False) for matrix in matrices]
    left = np.concatenate([u[:, :k] for (u, _, _), k in zip(parts, ranks, strict=True)], 1)
    values = np.concatenate([s[:k] for (_, s, _), k in zip(parts, ranks, strict=True)])
    right = np.concatenate([vh[:k] for (_, _, vh), k in zip(parts, ranks, strict=True)])
    (p, _, q), (r, _, t) = (np.linalg.svd(each, full_matrices=False) for each in (left, right))
    return p @ q @ np.diag(values) @ r @ t


def moves(base, models):
    return [m.double().numpy() - base.double().numpy() for m in models]


def relative(merged, base, expected):
    found = merged.double().numpy() - base.double().numpy()
    return np.abs(found - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_tsv_merge_is_the_papers(shape, count, dtype):
    base, models = fine_tuned(shape, count, seed=count, dtype=dtype)
    expected = naive_tsv(moves(base, models))
    bound = 2e-2 if dtype == torch.bfloat16 else 1e-4
    assert relative(TSV(models, base), base, expected) < bound
    assert relative(TSV(models, base, **{"lambda": 0.7}), base, 0.7 * expected) < bound


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_weights_scale_task_vectors_before_they_are_decomposed(shape):
    base, models = fine_tuned(shape, 3, seed=5)
    weight = [0.4, -1.3, 0.9]
    expected = naive_tsv([w * move for w, move in zip(weight, moves(base, models), strict=True)])
    assert relative(TSV(models, base, weight=weight), base, expected) < 1e-4


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("reweight", [0.0, 0.5, 1.0])
def test_r_tsvm_is_tsv_merge_with_other_ranks_and_weights(shape, reweight):
    base, models = fine_tuned(shape, 3, seed=6)
    generator = torch.Generator().manual_seed(1)
    models[1] = models[1] + (torch.rand(shape, generator=generator) < 0.05) * 1.5  # outliers
    models[2] = torch.where(torch.rand(shape, generator=generator) < 0.5, base, models[2])  # sparse
    matrices = moves(base, models)
    shares, ranks = [], []
    for matrix in matrices:
        size = np.abs(matrix)
        shares.append(size[size > size.mean() + 3 * size.std()].sum() / size.sum())
        zeros = (size < 0.1 * np.sqrt((matrix**2).mean())).mean()
        ranks.append(max(1, int(min(shape) // 3 * (1 - zeros))))
    assert len(set(shares)) == 3
    weights = [0.8 * (share / np.mean(shares)) ** reweight for share in shares]
    # Weights do not change directions, so they may be applied before the decomposition.
    expected = naive_tsv([w * m if w else m * 1e-30 for w, m in zip(weights, matrices, strict=True)], ranks)
    merged = R_TSVM(models, base, weight=0.8, reweight=reweight)
    assert relative(merged, base, expected) < 1e-4


def test_shares_of_outliers_and_zeros():
    vector = torch.cat([torch.full((99,), 1.0), torch.tensor([100.0])])
    assert outlier_share(vector) == pytest.approx(100 / 199)
    assert zero_share(vector) == pytest.approx(0.99)
    assert outlier_share(torch.zeros(5)) == zero_share(torch.zeros(5)) == 0


def test_models_that_are_equal_give_their_leading_directions():
    base, (model,) = fine_tuned((16, 12), 1)
    u, s, vh = torch.linalg.svd(model - base, full_matrices=False)
    expected = base + (u[:, :4] * s[:4]) @ vh[:4]
    assert torch.allclose(TSV([model] * 3, base), expected, atol=1e-5)


@pytest.mark.parametrize("method", [TSV, R_TSVM], ids=lambda m: m.name)
def test_a_model_equal_to_the_base_adds_nothing(method):
    base, models = fine_tuned((16, 12), 2)
    assert torch.equal(method([base, base], base), base)
    merged = method([*models, base], base)
    other = method([*models, base], base, weight=[1.0, 1.0, 7.0])
    assert torch.equal(merged, other)


@pytest.mark.parametrize("method", [TSV, R_TSVM], ids=lambda m: m.name)
def test_experts_in_one_tensor_are_merged_as_if_apart(method):
    base, models = fine_tuned((3, 9, 11), 2)
    merged = TSV(models, base)
    apart = [TSV([m[e] for m in models], base[e]) for e in range(3)]
    assert torch.equal(merged, torch.stack(apart))


@pytest.mark.parametrize("shape", [(7,), (4, 3, 2, 2), (6, 5, 3), (2, 30), (1, 30)], ids=str)
def test_what_is_no_matrix_is_averaged(shape):
    base, models = fine_tuned(shape, 3)
    mean = sum(model - base for model in models) / 3
    assert torch.allclose(TSV(models, base, **{"lambda": 0.9}), base + 0.9 * mean, atol=1e-6)
    assert torch.allclose(R_TSVM(models, base, reweight=0.0), base + mean, atol=1e-6)


@pytest.mark.parametrize("method", [TSV, R_TSVM], ids=lambda m: m.name)
def test_merges_after_the_first_decompose_nothing(method, monkeypatch):
    base, models = fine_tuned((9, 9), 2)
    prepared = method.prepared_for(models, base)
    monkeypatch.setattr(torch.linalg, "svd", None)
    method(models, base, prepared=prepared, weight=[0.5, 0.1], **{"lambda": 0.3})


def test_numbers_that_are_not_finite_are_refused():
    base, models = fine_tuned((9, 9), 2)
    models[1][2, 3] = float("nan")
    for method in (TSV, R_TSVM):
        with pytest.raises(MergeError, match="not finite"):
            method(models, base)


def test_a_decomposition_that_fails_is_tried_with_more_digits(monkeypatch):
    base, models = fine_tuned((9, 9), 2)
    expected = TSV(models, base)
    real = torch.linalg.svd

    def failing(matrix, **how):
        if matrix.dtype == torch.float32:
            raise torch.linalg.LinAlgError("no convergence")
        return real(matrix, **how)

    monkeypatch.setattr(torch.linalg, "svd", failing)
    assert torch.allclose(TSV(models, base), expected, atol=1e-5)

    def never(matrix, **how):
        raise torch.linalg.LinAlgError("no convergence")

    monkeypatch.setattr(torch.linalg, "svd", never)
    with pytest.raises(MergeError, match="does not converge"):
        TSV(models, base)
