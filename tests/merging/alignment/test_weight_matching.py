"""Weight matching against brute force, against the paper's algorithm written naively, and its laws."""

from itertools import pairwise, permutations, product

import numpy as np
import pytest
import torch

from evomerge.merging.alignment import symmetries
from evomerge.merging.alignment.specification import Group, Specification, TensorAxes, simple_specification
from evomerge.merging.alignment.transport import apply
from evomerge.merging.alignment.weight_matching import match
from evomerge.testing.permuted_models import config_of


def random_tensors(shapes, seed):
    generator = np.random.default_rng(seed)
    return {name: generator.standard_normal(shape) for name, shape in shapes.items()}


def matched(specification, one, other, **options):
    return match(specification, one.__getitem__, other.__getitem__, **options)


def moved(specification, tensors, orders):
    stored = {name: torch.from_numpy(tensor) for name, tensor in tensors.items()}
    return {name: apply(specification, name, orders, stored.__getitem__).numpy() for name in stored}


def objective(specification, one, other, orders):
    found = moved(specification, other, orders)
    return sum(np.vdot(one[name], found[name]) for name in specification.tensors)


def mlp(widths):
    """Return the specification and shapes of a multilayer perceptron."""
    tensors, shapes = {}, {}
    for layer, (inputs, outputs) in enumerate(pairwise(widths)):
        left = f"h{layer - 1}" if layer else None
        right = f"h{layer}" if layer < len(widths) - 2 else None
        tensors |= {f"fc{layer}.weight": (right, left), f"fc{layer}.bias": (right,)}
        shapes |= {f"fc{layer}.weight": (outputs, inputs), f"fc{layer}.bias": (outputs,)}
    return simple_specification(tensors, shapes), shapes


def rebasin(one, other, layers, seed):
    """Ainsworth et al. 2023, Algorithm 1, for a multilayer perceptron, from the identity."""
    from scipy.optimize import linear_sum_assignment

    orders = {n: np.arange(one[f"fc{n}.bias"].size) for n in range(layers - 1)}
    generator = np.random.default_rng(seed)
    moving = True
    while moving:
        moving = False
        for n in generator.permutation(layers - 1):
            into = other[f"fc{n}.weight"] if n == 0 else other[f"fc{n}.weight"][:, orders[n - 1]]
            out = other[f"fc{n + 1}.weight"]
            out = out if n + 1 == layers - 1 else out[orders[n + 1]]
            gains = one[f"fc{n}.weight"] @ into.T + one[f"fc{n + 1}.weight"].T @ out
            gains += np.outer(one[f"fc{n}.bias"], other[f"fc{n}.bias"])
            found = linear_sum_assignment(gains, maximize=True)[1]
            rows = np.arange(len(found))
            if gains[rows, found].sum() > gains[rows, orders[n]].sum() + 1e-12:
                orders[n], moving = found, True
    return {f"h{n}": order for n, order in orders.items()}


@pytest.mark.parametrize("seed", range(5))
def test_one_hidden_layer_is_matched_as_well_as_can_be(seed):
    specification, shapes = mlp([3, 6, 2])
    one, other = random_tensors(shapes, seed), random_tensors(shapes, 100 + seed)
    best = max(objective(specification, one, other, {"h0": np.array(p)}) for p in permutations(range(6)))
    found = matched(specification, one, other)
    assert objective(specification, one, other, found.orders) == pytest.approx(best)
    assert found.objectives[-1] == pytest.approx(best)


@pytest.mark.parametrize("seed", range(5))
def test_heads_are_matched_as_well_as_can_be(seed):
    """Heads and the numbers within each: all 3! × (2!)³ orders tried."""
    groups = {"heads": Group(3), "inner": Group(2, within="heads")}
    axes = {
        "v": TensorAxes(((("heads", "inner"),), ((4,),))),
        "o": TensorAxes((((4,),), (("heads", "inner"),))),
        "gate": TensorAxes(((("heads",),), ((4,),))),
    }
    specification = Specification(groups, axes)
    shapes = {name: specification.shape(name) for name in axes}
    one, other = random_tensors(shapes, seed), random_tensors(shapes, 100 + seed)
    everything = (
        {"heads": np.array(heads), "inner": np.array(inner)}
        for heads in permutations(range(3))
        for inner in product(permutations(range(2)), repeat=3)
    )
    best = max(objective(specification, one, other, orders) for orders in everything)
    assert matched(specification, one, other).objectives[-1] == pytest.approx(best)


def test_deep_networks_are_matched_no_worse_than_by_the_papers_algorithm():
    specification, shapes = mlp([5, 12, 12, 12, 4])
    ours, theirs = [], []
    for seed in range(20):
        one, other = random_tensors(shapes, seed), random_tensors(shapes, 100 + seed)
        found = matched(specification, one, other, seed=seed)
        ours.append(found.objectives[-1])
        theirs.append(objective(specification, one, other, rebasin(one, other, 4, seed)))
        assert objective(specification, one, other, found.orders) == pytest.approx(found.objectives[-1])
    assert np.mean(ours) > np.mean(theirs)


def test_no_single_group_can_be_matched_better_at_the_end():
    specification, shapes = mlp([5, 7, 7, 4])
    one, other = random_tensors(shapes, 0), random_tensors(shapes, 1)
    found = matched(specification, one, other)
    for group in ("h0", "h1"):
        for order in permutations(range(7)):
            tried = found.orders | {group: np.array(order)}
            assert objective(specification, one, other, tried) <= found.objectives[-1] + 1e-9


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "vit", "qwen3_moe"])
def test_the_objective_never_falls_and_the_seed_decides_everything(name):
    """Models that have nothing to do with each other: the hard case."""
    specification = symmetries.trace(config_of(name))
    shapes = {tensor: specification.shape(tensor) for tensor in specification.tensors}
    one, other = random_tensors(shapes, 0), random_tensors(shapes, 1)
    found, again = matched(specification, one, other, seed=5), matched(specification, one, other, seed=5)
    assert len(found.objectives) > 1
    assert all(np.diff(found.objectives) > 0)
    assert found.objectives[-1] > objective(specification, one, other, {})
    assert found.objectives[-1] == pytest.approx(objective(specification, one, other, found.orders), rel=1e-9)
    assert found.objectives == again.objectives
    assert all(np.array_equal(order, again.orders[group]) for group, order in found.orders.items())


def test_sweeps_are_limited():
    specification, shapes = mlp([5, 12, 12, 12, 4])
    one, other = random_tensors(shapes, 0), random_tensors(shapes, 1)
    few, many = (matched(specification, one, other, sweeps=n).objectives for n in (1, 50))
    assert len(few) < len(many)


def test_noise_does_not_hide_a_permutation():
    specification, shapes = mlp([6, 20, 20, 5])
    one = random_tensors(shapes, 0)
    noise = random_tensors(shapes, 1)
    generator = np.random.default_rng(2)
    orders = {name: generator.permutation(group.size) for name, group in specification.groups.items()}
    other = moved(specification, {name: one[name] + 0.2 * noise[name] for name in one}, orders)
    found = matched(specification, one, other).orders
    assert all(np.array_equal(orders[name][found[name]], np.arange(20)) for name in orders)


def test_held_groups_stay():
    specification, shapes = mlp([5, 7, 7, 4])
    one, other = random_tensors(shapes, 0), random_tensors(shapes, 1)
    held = {"h0": np.random.default_rng(3).permutation(7)}
    found = matched(specification, one, other, held=held)
    assert np.array_equal(found.orders["h0"], held["h0"])
    best = max(objective(specification, one, other, held | {"h1": np.array(p)}) for p in permutations(range(7)))
    assert found.objectives[-1] == pytest.approx(best)


def test_models_that_correspond_already_stay_as_they_are():
    """Fine-tuned from one base: the first matching may only be taken if it is better."""
    specification, shapes = mlp([5, 12, 12, 4])
    one, noise = random_tensors(shapes, 0), random_tensors(shapes, 1)
    found = matched(specification, one, {name: one[name] + 0.1 * noise[name] for name in one})
    assert all(np.array_equal(order, np.arange(12)) for order in found.orders.values())
    assert len(found.objectives) == 1
