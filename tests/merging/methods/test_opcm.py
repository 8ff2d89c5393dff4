"""OPCM against the reference's loop over a whole model, in float64 with full singular bases."""

import numpy as np
import pytest
import torch

from evomerge.errors import MergeError
from evomerge.merging import METHODS
from evomerge.merging.method import Place
from evomerge.testing.merge_methods import fine_tuned

OPCM = METHODS["opcm"]
SHAPES = [(12, 10), (9, 23), (16, 16)]


def naive_opcm(base, models, alpha):
    """Tang et al. 2025: name → tensor dictionaries in, one out. Also returns the last λ's two norms."""

    def norm(task):
        return np.sqrt(sum((tensor**2).sum() for tensor in task.values()))

    tasks = [{name: model[name] - base[name] for name in base} for model in models]
    merged, factor, norms, length = tasks[0], 1.0, [norm(tasks[0])], norm(tasks[0])
    for task in tasks[1:]:
        norms.append(norm(task))
        total = {}
        for name, tensor in task.items():
            if tensor.ndim == 2:
                u, s, vh = np.linalg.svd(merged[name])
                inside = u.T @ tensor @ vh.T
                np.fill_diagonal(inside, 0)
                split = int(np.argmax(np.cumsum(s) / s.sum() > alpha))
                inside[:split, :split] = 0
                tensor = u @ inside @ vh
            total[name] = factor * merged[name] + tensor
        length = norm(total)
        factor = length / np.mean(norms)
        merged = {name: tensor / factor for name, tensor in total.items()}
    return merged, np.mean(norms), length


def dictionaries(shapes, count, seed, dtype=torch.float32):
    drawn = {str(shape): fine_tuned(shape, count, seed, dtype) for shape in shapes}
    base = {name: each[0] for name, each in drawn.items()}
    models = [{name: each[1][i] for name, each in drawn.items()} for i in range(count)]
    return base, models


def exact(tensors):
    return {name: tensor.double().numpy() for name, tensor in tensors.items()}


@pytest.mark.parametrize("alpha", [0.5, 0.2, 0.9, 0.0])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_whole_model_is_the_references_once_it_has_the_models_norms(alpha, count):
    base, models = dictionaries([*SHAPES, (11,)], count, seed=count)
    expected, mean, length = naive_opcm(exact(base), list(map(exact, models)), alpha)
    for name, start in base.items():
        tensors = [model[name] for model in models]
        merged = OPCM(tensors, start, alpha=alpha, normalize=False, **{"lambda": mean / length})
        assert np.abs((merged - start).numpy() - expected[name]).max() < 1e-4 * np.abs(expected[name]).max()


@pytest.mark.parametrize("shape", [*SHAPES, (11,)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_model_of_one_tensor_is_the_references(shape, dtype):
    base, models = dictionaries([shape], 3, seed=4, dtype=dtype)
    ((name, start),) = base.items()
    expected, _, _ = naive_opcm(exact(base), list(map(exact, models)), 0.5)
    merged = OPCM([model[name] for model in models], start, **{"lambda": 0.6})
    bound = 2e-2 if dtype == torch.bfloat16 else 1e-4
    assert np.abs((merged - start.float()).numpy() - 0.6 * expected[name]).max() < bound * np.abs(expected[name]).max()


def test_what_is_added_keeps_off_the_leading_directions():
    base, models = fine_tuned((14, 9), 2)
    first, second = (model - base for model in models)
    added = OPCM(models, base, normalize=False) - base - first
    u, s, vh = torch.linalg.svd(first, full_matrices=False)
    inside = u.T @ added @ vh.T
    leading = int((s.cumsum(0) / s.sum() <= 0.5).sum())
    assert leading >= 2
    assert inside.diagonal().abs().max() < 1e-5
    assert inside[:leading, :leading].abs().max() < 1e-5
    # Everything else of the second task vector is there.
    kept = (u.T @ second @ vh.T).fill_diagonal_(0)
    kept[:leading, :leading] = 0
    assert torch.allclose(inside, kept, atol=1e-5)


def test_weights_scale_what_models_add():
    base, models = fine_tuned((14, 9), 3)
    together = OPCM(models, base, normalize=False) - base
    parts = [OPCM(models, base, normalize=False, weight=w) - base for w in ([1, 0, 0], [0, 1, 0], [0, 0, 1])]
    assert torch.allclose(sum(parts), together, atol=1e-5)
    weighted = OPCM(models, base, normalize=False, weight=[0.5, 2.0, -1.0]) - base
    assert torch.allclose(weighted, 0.5 * parts[0] + 2 * parts[1] - parts[2], atol=1e-5)


def test_order_matters_and_is_said_to():
    base, models = fine_tuned((14, 9), 3)
    assert OPCM.ordered
    assert not torch.allclose(OPCM(models, base), OPCM(models[::-1], base), atol=1e-3)


def test_embeddings_are_summed_without_projection():
    base, models = fine_tuned((14, 9), 2)
    embedding, layer = Place("embed", None, 4, 0.0), Place("layers.0.q", 0, 4, 0.0)
    summed = OPCM(models, base, normalize=False, place=embedding)
    assert torch.allclose(summed, models[0] + models[1] - base, atol=1e-6)
    assert torch.equal(OPCM(models, base, place=layer), OPCM(models, base))


def test_a_first_model_equal_to_the_base_claims_nothing():
    base, models = fine_tuned((14, 9), 1)
    assert torch.allclose(OPCM([base, *models], base, normalize=False), models[0], atol=1e-6)
    assert torch.equal(OPCM([base, base], base), base)


def test_experts_in_one_tensor_are_merged_as_if_apart():
    base, models = fine_tuned((3, 9, 11), 3)
    merged = OPCM(models, base, normalize=False)
    apart = [OPCM([m[e] for m in models], base[e], normalize=False) for e in range(3)]
    assert torch.allclose(merged, torch.stack(apart), atol=1e-6)


def test_numbers_that_are_not_finite_are_refused():
    base, models = fine_tuned((9, 9), 2)
    models[0][2, 3] = float("inf")
    with pytest.raises(MergeError, match="not finite"):
        OPCM(models, base)


def test_merges_after_the_first_decompose_nothing(monkeypatch):
    base, models = fine_tuned((9, 9), 3)
    prepared = OPCM.prepared_for(models, base)
    monkeypatch.setattr(torch.linalg, "svd", None)
    OPCM(models, base, prepared=prepared, weight=[0.5, 0.1, 1.0], **{"lambda": 0.3})
