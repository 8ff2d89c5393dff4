"""Weights as a point of the simplex: the map is one to one, fair to all parents, and CMA-ES finds optima through it."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from evomerge.errors import ConfigError
from evomerge.merging import METHODS
from evomerge.recipes import Recipe, yaml
from evomerge.search_spaces import FloatGene, Genome, ParentsInfo, SearchSpace, build_search_space, read_search_space
from evomerge.search_spaces.simplex import even_share, shares_of, weights_of
from evomerge.searchers import ObjectiveSpec, build_searcher, read_searcher

NAMES = tuple(
    sorted(f"model.layers.{layer}.{part}.weight" for layer in range(3) for part in ("self_attn.q_proj", "mlp.w1"))
)
counts = st.integers(2, 40)


def space(text: str, parents: int = 3) -> SearchSpace:
    document = yaml.loads(text, "s.yaml")
    references = {f"p{number}": f"zoo/p{number}" for number in range(parents)}
    info = ParentsInfo("zoo/base", references, NAMES, 3, "float32")
    return build_search_space(read_search_space(document.data, document), info)


def weights_in(recipe: Recipe) -> list[float]:
    return [float(str(entry.parameters["weight"])) for entry in recipe.models or ()]


def uniform_shares(parents: int) -> list[float]:
    return [even_share(behind) for behind in range(parents - 1, 0, -1)]


@given(st.lists(st.floats(0, 1), max_size=40))
def test_weights_are_a_point_of_the_simplex(shares: list[float]) -> None:
    weights = weights_of(shares)
    assert len(weights) == len(shares) + 1
    assert min(weights) >= 0
    assert math.isclose(math.fsum(weights), 1, abs_tol=1e-14)


@given(st.lists(st.floats(1e-3, 1), min_size=1, max_size=40))
def test_every_inner_point_has_its_own_shares(weights: list[float]) -> None:
    total = math.fsum(weights)
    shares = shares_of(weights)
    assert all(0 <= share <= 1 for share in shares)
    assert np.allclose(weights_of(shares), [weight / total for weight in weights], atol=1e-9)


@given(st.lists(st.floats(0.01, 0.9), max_size=12))
def test_every_inner_share_is_found_again(shares: list[float]) -> None:
    assume(weights_of(shares)[-1] > 1e-6)
    assert np.allclose(shares_of(weights_of(shares)), shares, atol=1e-9)


@given(st.data(), counts)
def test_points_of_the_border_are_reached_too(data: st.DataObject, parents: int) -> None:
    """One weight more than shares, so borders have many shares; those returned have these weights."""
    weights = data.draw(st.lists(st.sampled_from([0.0, 1.0, 2.0]), min_size=parents, max_size=parents))
    assume(any(weights))
    assert np.allclose(weights_of(shares_of(weights)), np.array(weights) / sum(weights), atol=1e-12)


@given(counts)
def test_corners_are_single_parents_exactly(parents: int) -> None:
    for number in range(parents):
        corner = [float(number == other) for other in range(parents)]
        assert weights_of(shares_of(corner)) == corner


@given(counts)
def test_a_step_at_equal_weights_is_as_long_in_every_direction(parents: int) -> None:
    """The lengths are (1 + 1/n)^(n + ½) / P and the directions orthogonal, as the module says."""
    start, step = np.array(uniform_shares(parents)), 1e-6
    moves = np.array(
        [
            (np.array(weights_of(start + step * unit)) - np.array(weights_of(start - step * unit))) / (2 * step)
            for unit in np.eye(parents - 1)
        ]
    )
    behind = np.arange(parents - 1, 0, -1)
    expected = np.diag(((1 + 1 / behind) ** (behind + 0.5) / parents) ** 2)
    assert np.allclose(moves @ moves.T, expected, atol=1e-7)
    assert (np.sqrt(np.diag(expected)) * parents >= math.e).all()
    assert (np.sqrt(np.diag(expected)) * parents < 2.83).all()


def test_even_shares_are_evenly_drawn_weights() -> None:
    """Four weights drawn evenly have mean 1/4 and variance 3/80 each, as a Dirichlet(1, 1, 1, 1) has."""
    generator = np.random.default_rng(0)
    weights = np.array([weights_of(shares) for shares in generator.random((20_000, 3))])
    assert np.allclose(weights.mean(0), 1 / 4, atol=0.005)
    assert np.allclose(weights.var(0), 3 / 80, atol=0.002)


@pytest.mark.parametrize("parents", [2, 3, 7, 16, 40])
def test_the_start_is_the_uniform_merge_bit_for_bit(parents: int) -> None:
    found = space("{method: linear, granularity: global, weights: simplex}", parents)
    generator = torch.Generator().manual_seed(parents)
    tensors = [torch.randn(1000, generator=generator) for _ in range(parents)]
    merged = METHODS["linear"](tensors, weight=weights_in(found.express(found.starting_points()[0])))
    assert torch.equal(merged, METHODS["linear"](tensors, weight=1.0))


def test_a_simplex_has_a_share_for_every_parent_but_the_last_and_starts_from_all_of_them() -> None:
    found = space("{method: linear, granularity: global, weights: simplex}")
    assert [gene.name for gene in found.genes] == ["p0.share", "p1.share"]
    assert all(isinstance(gene, FloatGene) and (gene.low, gene.high) == (0, 1) for gene in found.genes)
    uniform, *alone = [weights_in(found.express(point)) for point in found.starting_points()]
    assert uniform == pytest.approx([1 / 3] * 3)
    assert alone == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]


def test_each_layer_and_group_has_a_simplex_of_its_own() -> None:
    found = space("{method: ties, granularity: layer, groups: [attention, mlp], weights: simplex}")
    genes = [gene.name for gene in found.genes]
    assert "p1.share.layer2.mlp" in genes
    assert "p2.density.layer2.mlp" in genes
    assert not any(".weight." in name or name.startswith("p2.share") for name in genes)
    genome = {gene.name: gene.initial for gene in found.genes} | {"p0.share.layer2.mlp": 1.0}
    recipe = found.express(genome)
    settings = [{entry.filter: entry.value for entry in model.parameters["weight"]} for model in recipe.models or ()]
    by_layer = [np.array(list(each.values())) for each in settings]
    assert np.allclose(sum(by_layer), 1)
    assert [each[None][2] for each in settings] == [1, 0, 0]  # the last group has what no filter before it took
    assert [each[None][1] for each in settings] == pytest.approx([1 / 3] * 3)


def test_a_fixed_share_leaves_a_parent_out_and_corners_that_cannot_be_had() -> None:
    found = space("{method: linear, granularity: global, weights: simplex, fixed: {p0.share: 0}}")
    assert [gene.name for gene in found.genes] == ["p1.share"]
    points = [weights_in(found.express(point)) for point in found.starting_points()]
    assert points == [[0, 0.5, 0.5], [0, 1, 0], [0, 0, 1]]
    found = space("{method: linear, granularity: global, weights: simplex, bounds: {share: [0, 0.9]}}")
    assert [weights_in(found.express(point)) for point in found.starting_points()[1:]] == [[0, 0, 1]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{method: slerp, weights: simplex}", "slerp has no weight for each model that could be a share of one"),
        ("{method: linear, weights: simplex, bounds: {weight: [0, 1]}}", "'weight' is no parameter and no gene"),
        ("{method: linear, weights: simplex, fixed: {weight: 0.5}}", "'weight' is no parameter and no gene"),
        ("{method: linear, weights: simplex, bounds: {share: [0, 2]}}", r"share has no meaning outside \[0, 1\]"),
        (
            "{method: linear, weights: simplex, fixed: {p0.share.layer0: 2}}",
            r"a share is a number from 0 to 1, found 2",
        ),
        (
            "{method: linear, weights: simplex, fixed: {p0.share.layer0: yes}}",
            r"a share is a number from 0 to 1, found true",
        ),
        ("{method: linear, weights: sum}", "weights"),
    ],
)
def test_a_simplex_that_cannot_be_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        space(text, 2)


def test_one_parent_has_nobody_to_share_with() -> None:
    with pytest.raises(ConfigError, match="a single parent has nobody to share with"):
        space("{method: linear, weights: simplex}", 1)


def best_weights(target: NDArray[np.float64], parents: NDArray[np.float64], text: str, trials: int) -> list[float]:
    """Return the weights with which CMA-ES brings the merge of the parents (one a row) nearest to the target."""
    found = space(text, len(parents))
    objectives = (ObjectiveSpec("distance", "minimize"),)
    config = read_searcher({"kind": "cma-es", "restarts": "none"})
    searcher = build_searcher(config, found.genes, objectives, trials, found.starting_points())
    best: tuple[float, Genome] = (math.inf, {})
    for _ in range(trials):
        genome = searcher.ask()
        assert genome is not None
        merged = np.array(weights_in(found.express(genome))) @ parents
        distance = float(np.sum((merged - target) ** 2))
        searcher.tell(genome, {"distance": distance})
        best = min(best, (distance, genome), key=lambda pair: pair[0])
    return weights_in(found.express(best[1]))


def nearest(target: NDArray[np.float64], parents: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the weights of the simplex's point nearest to the target, by Frank and Wolfe's pairwise steps."""
    weights = np.full(len(parents), 1 / len(parents))
    for _ in range(20_000):
        slope = parents @ (weights @ parents - target)
        to, away = int(np.argmin(slope)), int(np.argmax(np.where(weights > 0, slope, -np.inf)))
        direction = parents[to] - parents[away]
        if (size := float(direction @ direction)) < 1e-30:
            break
        step = min(weights[away], (slope[away] - slope[to]) / size)
        weights[to] += step
        weights[away] -= step
    return weights


@pytest.mark.parametrize("inside", [True, False])
def test_cma_es_finds_the_nearest_mixture_of_sixteen(inside: bool) -> None:
    """A quadratic of the weights has one optimum; outside the hull it lies on the border, most weights zero."""
    generator = np.random.default_rng(3)
    parents = generator.normal(size=(16, 24))
    mixture = generator.dirichlet(np.full(16, 2.0))
    target = mixture @ parents if inside else 0.4 * generator.normal(size=24) + parents[:3].mean(0)
    expected = nearest(target, parents)
    assert (expected > 1e-6).all() == inside
    found = best_weights(target, parents, "{method: linear, granularity: global, weights: simplex}", 6000)
    residual = [float(np.sum((np.array(w) @ parents - target) ** 2)) for w in (found, expected)]
    assert residual[0] <= residual[1] + 1e-3
    assert np.allclose(found, expected, atol=0.02)


def test_free_weights_find_a_mixture_that_subtracts() -> None:
    generator = np.random.default_rng(4)
    parents = generator.normal(size=(8, 12))
    mixture = np.array([0.4, -0.2, 0.3, 0.5, -0.1, 0.1, 0.0, 0.0])
    text = "{method: linear, granularity: global, bounds: {weight: [-0.5, 1]}}"
    found = np.array(best_weights(mixture @ parents, parents, f"{text[:-1]}, fixed: {{normalize: false}}}}", 3000))
    assert np.allclose(found, mixture, atol=1e-3)


def test_the_starting_points_are_in_the_order_of_the_parents() -> None:
    found = space("{method: linear, granularity: global, weights: simplex}", 5)
    places = [weights.index(1.0) for weights in map(weights_in, map(found.express, found.starting_points()[1:]))]
    assert all(later == earlier + 1 for earlier, later in pairwise(places))
