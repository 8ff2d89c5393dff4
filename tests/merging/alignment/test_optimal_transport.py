"""OT fusion against brute force, the paper's equations, and models that were merely widened."""

from itertools import permutations

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

from evomerge.errors import MergeError
from evomerge.merging.alignment.optimal_transport import exact, fuse, plan, sinkhorn, squared_distances
from evomerge.merging.alignment.specification import Group, Specification, TensorAxes, simple_specification
from evomerge.merging.alignment.transport import Sides, apply


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def network(inputs, hidden, outputs, seed):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"fc1.weight": (hidden, inputs), "fc1.bias": (hidden,), "fc2.weight": (outputs, hidden)}
    tensors = {n: torch.randn(s, generator=generator, dtype=torch.float64) for n, s in shapes.items()}
    named = {"fc1.weight": ("h", None), "fc1.bias": ("h",), "fc2.weight": (None, "h")}
    return tensors, simple_specification(named, shapes)


def forward(tensors, x):
    return torch.relu(x @ tensors["fc1.weight"].T + tensors["fc1.bias"]) @ tensors["fc2.weight"].T


def carried(specification, tensors, movements):
    return {name: apply(specification, name, movements, tensors.__getitem__) for name in tensors}


def test_the_exact_plan_of_equal_sizes_is_the_best_permutation():
    cost = random(6, 6) ** 2
    best = min(sum(cost[i, p[i]] for i in range(6)) for p in permutations(range(6)))
    found = plan(cost)
    assert cost[np.arange(6), found].sum() == pytest.approx(best)


@pytest.mark.parametrize("shape", [(4, 8), (8, 4), (4, 6), (5, 7), (7, 16)])
def test_exact_plans_of_different_sizes_are_optimal(shape):
    cost = random(*shape) ** 2
    found = exact(cost)
    rows, columns = shape
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-9)
    np.testing.assert_allclose(found.sum(0), rows / columns, rtol=1e-9)
    limits = np.concatenate([np.kron(np.eye(rows), np.ones(columns)), np.kron(np.ones(rows), np.eye(columns))])
    totals = np.concatenate([np.full(rows, 1 / rows), np.full(columns, 1 / columns)])
    best = linprog(cost.reshape(-1), A_eq=limits, b_eq=totals).fun
    assert (cost * found).sum() / rows == pytest.approx(best)


@pytest.mark.parametrize("shape", [(6, 6), (5, 9)])
def test_softened_plans_have_both_marginals_and_tend_to_the_exact_one(shape):
    cost = random(*shape) ** 2
    rows, columns = shape
    for regularisation in (0.5, 0.05):
        found = sinkhorn(cost, regularisation)
        np.testing.assert_allclose(found.sum(1), 1, rtol=1e-7)
        np.testing.assert_allclose(found.sum(0), rows / columns, rtol=1e-6)
        kernel = np.exp(-cost / (regularisation * cost.max()))  # the plan is diag(u) K diag(v): cross-ratios agree
        ratio = (found[0, 0] * found[1, 1]) / (found[0, 1] * found[1, 0])
        assert ratio == pytest.approx(kernel[0, 0] * kernel[1, 1] / (kernel[0, 1] * kernel[1, 0]), rel=1e-6)
    sharp = (cost * sinkhorn(cost, 0.001)).sum()
    best = plan(cost)
    optimum = cost[np.arange(rows), best].sum() if isinstance(best, np.ndarray) else (cost * best.numpy()).sum()
    assert sharp == pytest.approx(optimum, rel=0.02)


def test_distances():
    one, other = random(3, 5), random(4, 5, seed=1)
    expected = ((one[:, None] - other[None]) ** 2).sum(-1)
    np.testing.assert_allclose(squared_distances(one, other), expected, atol=1e-12)


def test_a_softened_fusion_is_the_papers():
    """Singh & Jaggi 2020, equations 2 and 3: Ŵ = W T diag(1/β), W̃ = diag(1/β) Tᵀ Ŵ, for one hidden layer."""
    target, specification = network(4, 6, 3, 0)
    source, _ = network(4, 6, 3, 1)
    movements = fuse(specification, specification, Sides(target.__getitem__, source.__getitem__), regularisation=0.1)
    features = [np.concatenate([t["fc1.weight"], t["fc1.bias"][:, None]], 1) for t in (source, target)]
    cost = ((features[0][:, None] - features[1][None]) ** 2).sum(-1)  # source × target, as in the paper
    kernel = np.exp(-cost / (0.1 * cost.max()))
    u, v = np.ones(6), np.ones(6)
    for _ in range(20_000):
        u = (1 / 6) / (kernel @ v)
        v = (1 / 6) / (kernel.T @ u)
    transport = u[:, None] * kernel * v[None]
    inverse = np.diag(np.full(6, 6.0))
    found = carried(specification, source, movements)
    np.testing.assert_allclose(found["fc1.weight"], inverse @ transport.T @ source["fc1.weight"].numpy(), rtol=1e-6)
    np.testing.assert_allclose(found["fc2.weight"], source["fc2.weight"].numpy() @ transport @ inverse, rtol=1e-6)


@pytest.mark.parametrize("copies", [2, 3])
def test_a_model_whose_neurons_were_doubled_is_carried_back(copies):
    target, ours = network(4, 6, 3, 0)
    order = torch.from_numpy(np.random.default_rng(1).permutation(6 * copies))
    wide = {
        "fc1.weight": target["fc1.weight"].repeat(copies, 1)[order],
        "fc1.bias": target["fc1.bias"].repeat(copies)[order],
        "fc2.weight": (target["fc2.weight"] / copies).repeat(1, copies)[:, order],
    }
    own = Specification({"h": Group(6 * copies)}, network(4, 6 * copies, 3, 0)[1].tensors)
    movements = fuse(ours, own, Sides(target.__getitem__, wide.__getitem__))
    found = carried(own, wide, movements)
    for name, tensor in target.items():
        torch.testing.assert_close(found[name], tensor)


def test_activations_may_decide():
    target, specification = network(4, 6, 3, 0)
    source, _ = network(4, 6, 3, 1)
    x = torch.randn(50, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    fires = [torch.relu(x @ t["fc1.weight"].T + t["fc1.bias"]).numpy() for t in (target, source)]
    movements = fuse(
        specification,
        specification,
        Sides(target.__getitem__, source.__getitem__),
        activations=[{"h": each} for each in fires],
    )
    cost = ((fires[0].T[:, None] - fires[1].T[None]) ** 2).sum(-1)
    best = min(permutations(range(6)), key=lambda p: sum(cost[i, p[i]] for i in range(6)))
    assert tuple(movements["h"]) == best
    torch.testing.assert_close(forward(carried(specification, source, movements), x), forward(source, x))


def test_other_numbers_of_heads_are_refused():
    axes = {"v": TensorAxes(((("heads", "inner"),), ((4,),)))}
    one = Specification({"heads": Group(2), "inner": Group(3, "heads")}, axes)
    other = Specification({"heads": Group(4), "inner": Group(3, "heads")}, axes)
    with pytest.raises(MergeError, match="heads has 2 heads or experts in one model and 4 in the other"):
        fuse(one, other, Sides(torch.zeros, torch.zeros))
