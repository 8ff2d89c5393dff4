"""Layer routing: the paths that genomes stand for, their scales, where searches start, and that they get somewhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import ConfigError, EvomergeError
from evomerge.recipes import PathStep, Recipe, parse_recipe, path_of, to_mergekit, write_recipe, yaml
from evomerge.search_spaces import (
    FloatGene,
    Genome,
    IntGene,
    ParentsInfo,
    SearchSpace,
    build_search_space,
    read_search_space,
)
from evomerge.search_spaces.layer_routing import NEIGHBOURS
from evomerge.searchers import ObjectiveSpec, build_searcher, read_searcher
from evomerge.testing.searchers import drive

NICKNAMES = ("a", "b", "c")


def info(layers: int, parents: int = 2, base: str | None = "zoo/base", **common: Any) -> ParentsInfo:
    references = {nickname: f"zoo/{nickname}" for nickname in NICKNAMES[:parents]}
    return ParentsInfo(base, references, ("model.layers.0.w",), layers, "float32", common)


def space(layers: int = 4, parents: int = 2, base: str | None = "zoo/base", **fields: Any) -> SearchSpace:
    document = yaml.loads(yaml.dumps({"kind": "layer_routing", **fields}), "s.yaml")
    config = read_search_space(document.data, document)
    # What a run folder stores must read back as the same configuration.
    again = config.model_dump(mode="json", exclude_none=True)
    assert read_search_space(again, yaml.loads(yaml.dumps(again))) == config
    return build_search_space(config, info(layers, parents, base))


def indicators(found: SearchSpace) -> list[str]:
    return [gene.name for gene in found.genes if isinstance(gene, IntGene)]


def initial(found: SearchSpace) -> dict[str, Any]:
    return {gene.name: gene.initial for gene in found.genes}


def with_places(found: SearchSpace, *chosen: str) -> dict[str, Any]:
    assert set(chosen) <= set(indicators(found))
    return {**initial(found), **{name: int(name in chosen) for name in indicators(found)}}


def steps(recipe: Recipe) -> tuple[PathStep, ...]:
    path = path_of(recipe)
    assert path is not None
    return path


def short(recipe: Recipe) -> str:
    """Return a path without its scales, such as ``a0 a1 b2``."""
    return " ".join(f"{step.model.removeprefix('zoo/')}{step.layer}" for step in steps(recipe))


def scales(recipe: Recipe) -> list[float]:
    return [step.scale for step in steps(recipe)]


@st.composite
def configurations(draw: st.DrawFn) -> dict[str, Any]:
    parents = draw(st.integers(1, 3))
    taking_part = draw(st.permutations(NICKNAMES[:parents]).flatmap(lambda p: st.sampled_from([p, p[:1], p[:2]])))
    fields: dict[str, Any] = {
        "layers": draw(st.integers(1, 5)),
        "parents": parents,
        "repetitions": draw(st.integers(1, 3)),
        "scales": draw(st.sampled_from(["none", "step", "network"])),
        "scale_bounds": draw(st.sampled_from([[0.5, 1.5], [-1.0, 1.0], [0.0, 2.0], [-1e-4, 1.0], [1.0, 1.1]])),
        "hidden": draw(st.integers(1, 3)),
    }
    for name, values in {
        "max_depth": st.integers(3, 12),
        "first": st.sampled_from(taking_part),
        "last": st.sampled_from(taking_part),
        "outside": st.sampled_from([*NICKNAMES[:parents], "base"]),
    }.items():
        if draw(st.booleans()):
            fields[name] = draw(values)
    return {"taking_part": list(taking_part), **fields}


def built(drawn: dict[str, Any]) -> SearchSpace:
    fields = dict(drawn)
    layers, parents, taking_part = fields.pop("layers"), fields.pop("parents"), fields.pop("taking_part")
    document = yaml.loads(yaml.dumps({"kind": "layer_routing", "parents": taking_part, **fields}))
    return build_search_space(read_search_space(document.data, document), info(layers, parents))


@st.composite
def genomes(draw: st.DrawFn, found: SearchSpace) -> dict[str, Any]:
    return {
        gene.name: draw(st.integers(gene.low, gene.high))
        if isinstance(gene, IntGene)
        else draw(st.sampled_from([gene.low, gene.high, gene.initial]) | st.floats(gene.low, gene.high))
        for gene in found.genes
        if isinstance(gene, (IntGene, FloatGene))
    }


@settings(max_examples=300, deadline=None)
@given(st.data(), configurations())
def test_a_genome_is_the_path_of_its_places_between_the_pinned_layers(
    data: st.DataObject, drawn: dict[str, Any]
) -> None:
    found = built(drawn)
    genome = data.draw(genomes(found))
    recipe = found.express(genome)
    assert parse_recipe(write_recipe(recipe)) == recipe
    first = drawn.get("first", drawn["taking_part"][0])
    last, end = drawn.get("last", first), drawn["layers"] - 1
    # The names of the places are read here with code of the test's own, and laid out in loops of its own.
    chosen = [
        (f"zoo/{nickname}", layer)
        for repetition in range(drawn["repetitions"])
        for nickname in drawn["taking_part"]
        for layer in range(drawn["layers"])
        if genome[f"r{repetition}.{nickname}.layer{layer}"]
    ]
    inner = chosen[: drawn.get("max_depth", 10**6) - 2]
    expected = [(f"zoo/{first}", 0), *inner, (f"zoo/{last}", end)]
    if not chosen and first == last and end == 0:
        expected = expected[:1]
    assert [step[:2] for step in steps(recipe)] == expected
    low, high = drawn["scale_bounds"]
    for scale in scales(recipe):
        assert abs(scale) >= 1e-3
        assert (low <= scale <= high) if drawn["scales"] != "none" else scale == 1
    outside = f"zoo/{drawn.get('outside', first)}"
    assert recipe.outside == (None if outside == expected[0][0] == expected[-1][0] else outside)
    assert recipe.dtype == "float32"
    assert found.express(genome).hash == built(drawn).express(dict(reversed(genome.items()))).hash


@settings(max_examples=200, deadline=None)
@given(configurations())
def test_searches_start_from_the_first_parent_itself(drawn: dict[str, Any]) -> None:
    found = built(drawn)
    first = drawn.get("first", drawn["taking_part"][0])
    points = found.starting_points()
    assert points[0] == initial(found)
    if drawn["layers"] <= drawn.get("max_depth", 10**6) and drawn.get("last", first) == first:
        own = tuple(PathStep(f"zoo/{first}", layer) for layer in range(drawn["layers"]))
        assert steps(found.express(points[0])) == own
    paths = [steps(found.express(point)) for point in points]
    assert len(set(paths)) == len(paths) <= 3 + NEIGHBOURS
    for path in paths:
        assert all(step.scale == 1 for step in path)
        assert len(path) <= drawn.get("max_depth", 10**6)
    for gene in found.genes:
        assert gene.low <= gene.initial <= gene.high  # type: ignore[union-attr,operator]


@settings(max_examples=100, deadline=None)
@given(st.data(), configurations())
def test_genes_that_do_nothing_do_not_change_the_recipe(data: st.DataObject, drawn: dict[str, Any]) -> None:
    found = built({**drawn, "scales": "step"})
    genome = data.draw(genomes(found))
    passed = len(steps(found.express(genome))) - 2
    chosen = [name for name in indicators(found) if genome[name]]
    idle = {f"{name}.scale" for name in indicators(found)} - {f"{name}.scale" for name in chosen[:passed]}
    other = {name: data.draw(st.floats(*drawn["scale_bounds"])) if name in idle else v for name, v in genome.items()}
    # Places beyond the depth limit do nothing either.
    other |= {name: data.draw(st.integers(0, 1)) for name in chosen[passed:]}
    assert found.express(other).hash == found.express(genome).hash


def test_all_places_and_none_of_them() -> None:
    found = space(layers=2, repetitions=2, scales="none", last="b")
    assert short(found.express(dict.fromkeys(indicators(found), 1))) == "a0 a0 a1 b0 b1 a0 a1 b0 b1 b1"
    assert short(found.express(dict.fromkeys(indicators(found), 0))) == "a0 b1"
    lone = space(layers=1, parents=1, repetitions=2, scales="none")
    assert short(lone.express({"r0.a.layer0": 0, "r1.a.layer0": 0})) == "a0"
    assert short(lone.express({"r0.a.layer0": 0, "r1.a.layer0": 1})) == "a0 a0 a0"


def test_a_path_that_is_too_long_keeps_its_pinned_end() -> None:
    found = space(layers=3, repetitions=1, scales="none", max_depth=4)
    assert short(found.express(dict.fromkeys(indicators(found), 1))) == "a0 a0 a1 a2"
    found = space(layers=6, repetitions=1, scales="none", max_depth=4)
    assert short(found.express(initial(found))) == "a0 a1 a2 a5"


def test_genes_have_readable_names_in_a_fixed_order() -> None:
    found = space(layers=2, repetitions=2, scales="step", parents=3, first="c")
    named = space(layers=1, parents=1, repetitions=2, scales="network", hidden=2)
    assert indicators(found) == [f"r{r}.{n}.layer{k}" for r in (0, 1) for n in "abc" for k in (0, 1)]
    tail = [gene.name for gene in found.genes][12:]
    assert tail == ["first.scale", *(f"{name}.scale" for name in indicators(found)), "last.scale"]
    assert [gene.name for gene in named.genes] == [
        *("r0.a.layer0", "r1.a.layer0"),
        *(f"network.hidden{unit}.{word}" for unit in (0, 1) for word in ("from", "to", "step", "bias", "out")),
        "network.bias",
    ]


def test_parents_are_laid_out_in_the_order_of_the_configuration() -> None:
    document = yaml.loads("kind: layer_routing\nparents: [c, a]\nrepetitions: 1\nscales: none\n")
    found = build_search_space(read_search_space(document.data, document), info(2, 3))
    assert short(found.express(dict.fromkeys(indicators(found), 1))) == "c0 c0 c1 a0 a1 c1"


def test_each_place_has_the_scale_of_its_gene() -> None:
    found = space(layers=3, repetitions=2, scales="step", scale_bounds=[-1, 2])
    genome = with_places(found, "r0.b.layer1", "r1.a.layer2") | {
        "first.scale": 0.9,
        "r0.b.layer1.scale": -0.5,
        "r1.a.layer2.scale": 0.0,
        "last.scale": 1.75,
    }
    assert short(found.express(genome)) == "a0 b1 a2 a2"
    assert scales(found.express(genome)) == [0.9, -0.5, 1e-3, 1.75]
    assert scales(found.express(genome | {"last.scale": -1e-9}))[-1] == -1e-3
    never_negative = space(layers=3, repetitions=2, scales="step", scale_bounds=[0, 2])
    assert scales(never_negative.express(genome | {"r0.b.layer1.scale": 0.0}))[1] == 1e-3


def by_hand(genome: Genome, path: Sequence[int], layers: int, depth: int, hidden: int, low: float, high: float) -> Any:
    """Return the network's scales of a path of laid-out layers: the module's formula, written with matrices."""
    rows = [[genome[f"network.hidden{k}.{w}"] for w in ("from", "to", "step", "bias")] for k in range(hidden)]
    out = np.array([genome[f"network.hidden{k}.out"] for k in range(hidden)])
    found = [1.0]
    for t in range(1, len(path)):
        inputs = [2 * path[t - 1] / (layers - 1) - 1, 2 * path[t] / (layers - 1) - 1, 2 * t / (depth - 1) - 1, 1]
        squashed = np.tanh(out @ np.tanh(np.array(rows) @ np.array(inputs)) + genome["network.bias"])
        found.append(np.interp(squashed, [-1, 0, 1], [low, 1, high]))
    return found


@settings(max_examples=50, deadline=None)
@given(st.data(), st.sampled_from([(0.5, 1.5), (-0.5, 1.25), (0.9, 3.0)]), st.sampled_from([6, 9, 18]))
def test_the_network_gives_the_scale_of_each_pair_of_layers_and_step(
    data: st.DataObject, bounds: tuple[float, float], depth: int
) -> None:
    found = space(layers=4, repetitions=2, hidden=3, scale_bounds=list(bounds), max_depth=depth)
    weights = {gene.name: data.draw(st.floats(-1, 1)) for gene in found.genes if isinstance(gene, FloatGene)}
    chosen = with_places(found, "r0.a.layer1", "r0.b.layer2", "r0.b.layer3", "r1.a.layer1")
    recipe = found.express({**chosen, **weights})
    assert short(recipe) == "a0 a1 b2 b3 a1 a3"
    expected = by_hand(weights, [0, 1, 6, 7, 1, 3], layers=8, depth=depth, hidden=3, low=bounds[0], high=bounds[1])
    for scale, exact in zip(scales(recipe), expected, strict=True):
        assert math.isclose(scale, exact, rel_tol=1e-9) or abs(exact) < 1e-3


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_a_network_of_zeros_scales_nothing(data: st.DataObject) -> None:
    found = space(layers=3, repetitions=2)
    places = {name: data.draw(st.integers(0, 1)) for name in indicators(found)}
    assert set(scales(found.express({**initial(found), **places}))) == {1.0}


def test_an_output_of_any_size_stays_in_the_bounds() -> None:
    found = space(layers=3, hidden=40, scale_bounds=[0.1, 1.2])  # 1 - (1 - 0.1) is less than 0.1
    weights = {gene.name: gene.high for gene in found.genes if gene.name.endswith((".out", "bias"))}
    assert scales(found.express({**initial(found), **weights})) == [1.0, 1.2, 1.2]
    lowest = {**weights, **{name: -weights[name] for name in weights if name.endswith((".out", "network.bias"))}}
    assert scales(found.express({**initial(found), **lowest})) == [1.0, 0.1, 0.1]


def test_starting_points_are_stacks_of_lower_and_upper_layers() -> None:
    paths = [short(found.express(point)) for found in [space(layers=8)] for point in found.starting_points()]
    assert paths[:3] == [
        "a0 a1 a2 a3 a4 a5 a6 a7",
        "a0 a1 a2 a3 b4 b5 b6 a7",
        "a0 a1 a2 a3 a4 a5 b2 b3 b4 b5 b6 a7",
    ]
    for path in paths[3:]:  # of 8 layers, one is repeated or left out, or one of another parent's is put in
        assert len(path.split()) in (7, 9)
    assert any("b" in path for path in paths[3:])
    paths = [
        short(found.express(p)) for found in [space(layers=4, first="b", last="a")] for p in found.starting_points()
    ]
    assert paths[:3] == ["b0 b1 b2 a3", "b0 b1 a2 a3", "b0 b1 b2 a1 a2 a3"]
    paths = [short(found.express(p)) for found in [space(layers=4, parents=1)] for p in found.starting_points()]
    assert paths[:2] == ["a0 a1 a2 a3", "a0 a1 a2 a1 a2 a3"]
    paths = [short(found.express(p)) for found in [space(layers=4, max_depth=4)] for p in found.starting_points()]
    assert paths[:2] == ["a0 a1 a2 a3", "a0 a1 b2 a3"]
    assert all(len(path.split()) <= 4 for path in paths)


def test_the_first_parent_itself_is_its_plain_recipe() -> None:
    found = space(layers=4, outside="a")
    recipe = found.express(found.starting_points()[0])
    expected = {"merge_method": "passthrough", "slices": [{"sources": [{"model": "zoo/a", "layer_range": [0, 4]}]}]}
    assert recipe == Recipe.model_validate({**expected, "dtype": "float32"})


def test_recipes_without_scales_are_written_for_mergekit() -> None:
    found = space(layers=4, scales="none")
    recipe = found.express(found.starting_points()[1])
    assert parse_recipe(to_mergekit(recipe)) == recipe


def test_fields_of_all_recipes_stand_in_these_too() -> None:
    document = yaml.loads("kind: layer_routing\n")
    config = read_search_space(document.data, document)
    found = build_search_space(config, info(2, chat_template="chatml"))
    assert found.express(initial(found)).chat_template == "chatml"
    with pytest.raises(ConfigError, match="tokenizer_source is for merges of weights"):
        build_search_space(config, info(2, tokenizer_source="base"))


def test_a_genome_must_have_exactly_the_genes() -> None:
    found = space(layers=2, parents=1, scales="none")
    with pytest.raises(EvomergeError, match=r"no value for 3 genes, the first 'r0\.a\.layer1'"):
        found.express({"r0.a.layer0": 1})
    with pytest.raises(EvomergeError, match=r"no gene 'r0\.a\.layer2'; did you mean 'r0\.a\.layer1'"):
        found.express({**initial(found), "r0.a.layer2": 1})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"first": "d"}, "search_space.first: 'd' is none of the parents\n    → valid names: a, b"),
        ({"last": "base"}, "search_space.last: 'base' is none of the parents"),
        ({"outside": "bas"}, "search_space.outside: 'bas' is none of the parents\n    → did you mean 'base'"),
        ({"repetitions": 0}, "repetitions: input should be greater than or equal to 1"),
        ({"max_depth": 2}, "the two pinned layers alone leave nothing to search: use at least 3"),
        ({"scale_bounds": [1.5, 0.5]}, "the bounds of the scales must rise"),
        ({"scale_bounds": [0.2, 0.8]}, "starts from scales of 1, which [0.2, 0.8] does not contain"),
        ({"scales": "steps"}, "scales: "),
        ({"hidden": 0}, "hidden: input should be greater than or equal to 1"),
        ({"repetition": 3}, "did you mean 'repetitions'?"),
        ({"first": "d", "last": "e"}, "search_space.last: 'e'"),
        ({"layers": 0}, "these models have no layers"),
        ({"parents": 0}, "there is no parent whose layers"),
        ({"outside": "base", "base": None}, "search_space.outside: the experiment has no base"),
    ],
)
def test_a_bad_search_space_is_refused_with_the_remedy(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        space(**fields)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("parents: [a, a]", "'a' is listed twice"),
        ("parents: []", "at least one parent must take part"),
        ("parents: [a, d]", "search_space.parents[1]: 'd' is none of the parents"),
        ("parents: [a]\nfirst: b", "search_space.first: 'b' is none of the parents"),
    ],
)
def test_bad_lists_of_parents_are_refused(text: str, message: str) -> None:
    document = yaml.loads(f"kind: layer_routing\n{text}\n", "s.yaml")
    with pytest.raises(ConfigError) as raised:
        build_search_space(read_search_space(document.data, document), info(4))
    assert message in str(raised.value)


# --- searches ---

COST = (ObjectiveSpec("cost", "minimize"),)


def distance(found: SearchSpace) -> Any:
    """Return a cost: at how many places a genome differs from a hidden path that no starting point is near."""
    target = {name: int((7 * index**2 + 3 * index) % 5 < 2) for index, name in enumerate(indicators(found))}
    return lambda genome: {"cost": float(sum(genome[name] != value for name, value in target.items()))}


def costs(searcher: str, found: SearchSpace, trials: int, seed: int = 0) -> list[float]:
    """Return the cost of every trial of a search, and check that the same seed gives the same genomes."""
    config = read_searcher({"kind": searcher, "seed": seed})
    told = [
        drive(build_searcher(config, found.genes, COST, trials, found.starting_points()), distance(found), trials, 3)
        for _ in range(2)
    ]
    assert told[0] == told[1]
    for trial in told[0]:
        found.express(trial.genome)
    return [trial.objectives["cost"] for trial in told[0] if trial.objectives]


@pytest.mark.parametrize("searcher", ["random", "nsga2", "cma-es"])
@pytest.mark.parametrize("kind", ["none", "step", "network"])
def test_searchers_propose_paths_and_improve(searcher: str, kind: str) -> None:
    found = space(layers=4, repetitions=2, scales=kind)
    told = costs(searcher, found, 30)
    assert len(told) == 30
    assert min(told) < told[0]


@pytest.mark.parametrize("searcher", ["nsga2", "cma-es"])
def test_a_hidden_path_of_sixteen_places_is_found_sooner_than_at_random(searcher: str) -> None:
    found = space(layers=4, repetitions=2, scales="none")
    assert len(found.genes) == 16
    ours = [min(costs(searcher, found, 250, seed)) for seed in range(4)]
    randomly = [min(costs("random", found, 250, seed)) for seed in range(4)]
    assert sum(ours) <= 1 < sum(randomly)
