"""Recipes mean what mergekit's own planner makes of them, read and written: stored results, live ones if it is there.

EVOMERGE_MERGEKIT_PYTHON is the Python of an environment with mergekit, EVOMERGE_MERGEKIT_SOURCE a working tree or git
folder of its repository.
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from evomerge.errors import ConfigError
from evomerge.merging.method import METHODS, MergeMethod
from evomerge.recipes import (
    NamedRecipe,
    Recipe,
    parse_recipe,
    parse_recipes,
    plan,
    read_recipes,
    resolve_parameter,
    stages_to_mergekit,
    to_mergekit,
    write_recipes,
)
from evomerge.recipes.mergekit import METHODS as MERGEKIT
from evomerge.recipes.modules import owners
from evomerge.search_spaces import ChoiceGene, FloatGene, ParentsInfo, SearchSpace, build_search_space
from evomerge.search_spaces.parameter_config import ParameterSpaceConfig

HERE = Path(__file__).parent
STORED = json.loads((HERE / "recipe_parameters.json").read_text())
FILES = sorted((HERE / "recipes").glob("*.yaml"))
SHARED = [name for name in MERGEKIT if name in METHODS]


def by_name(path: Path) -> dict[str, Recipe]:
    """Return the recipes of a file as the stored results call them."""
    stages = read_recipes(path)
    return {path.stem if len(stages) == 1 else f"{path.stem}#{stage.name or ''}": stage.recipe for stage in stages}


RECIPES = {name: recipe for path in FILES for name, recipe in by_name(path).items()}


def equal(ours: Any, theirs: Any) -> bool:
    """Whether two parameters are equal up to the one rounding error that mergekit makes in gradients."""
    if isinstance(theirs, bool) or theirs is None:
        return ours is theirs or (isinstance(ours, int) and bool(ours) is theirs)
    return bool(ours == pytest.approx(theirs, rel=1e-14, abs=1e-16))


def check_same(recipe: Recipe, theirs: Mapping[str, Any], methods: Mapping[str, Any]) -> None:
    """Assert that every tensor has mergekit's inputs, depth, base and parameters."""
    names = dict.fromkeys(recipe.parents(), theirs["tensor_names"])
    ours = {tensor.name: tensor for tensor in plan(recipe, names)}
    assert ours.keys() == {tensor[0] for tensor in theirs["tensors"]}
    known = methods[theirs["method"]]
    for name, depth, base, inputs, merged in theirs["tensors"]:
        tensor = ours[name]
        assert (tensor.depth, tensor.base) == (depth, base), name
        assert [[each.model, each.tensor] for each in tensor.inputs] == [each[:2] for each in inputs], name
        where: dict[str, Any] = {"depth": depth, "slice_index": tensor.slice_index}
        for parameter, value in merged.items():
            default = known[parameter][1]
            found = resolve_parameter(recipe, parameter, tensor=name, model=None, default=default, **where)
            assert equal(found, value), (name, parameter, found, value)
        for model, input_name, values in inputs:
            for parameter, value in values.items():
                default = known[parameter][1]
                found = resolve_parameter(recipe, parameter, tensor=input_name, model=model, default=default, **where)
                assert equal(found, value), (name, model, parameter, found, value)


@pytest.mark.parametrize("name", RECIPES)
def test_every_tensor_has_mergekits_inputs_depth_and_parameters(name: str) -> None:
    check_same(RECIPES[name], STORED["recipes"][name], STORED["methods"])


@pytest.mark.parametrize("name", SHARED)
def test_a_shared_method_has_mergekits_parameters_and_defaults(name: str) -> None:
    method: MergeMethod = METHODS[name]
    theirs = STORED["methods"][name]
    assert set(MERGEKIT[name]) == set(theirs)
    ours = {
        p.name: ["model" if p.per_model else "merge", "required" if p.required else p.default]
        for p in method.parameters
    }
    assert set(theirs) <= set(ours) | set(method.ignored)
    for parameter in set(ours) & set(theirs):
        scale = (name, parameter) == ("passthrough", "scale")  # mergekit's None multiplies by nothing, as our 1
        assert ours[parameter] == theirs[parameter] or (scale and ours[parameter][1] == 1.0), parameter


@pytest.mark.parametrize("architecture", STORED["modules"])
def test_a_module_has_the_tensors_that_mergekit_gives_it(architecture: str) -> None:
    theirs = STORED["modules"][architecture]
    expected = {tensor: module for module, tensors in theirs.items() for tensor in tensors}
    assert owners(tuple(theirs), list(expected)) == expected


def test_the_table_of_mergekits_methods_is_whole() -> None:
    assert MERGEKIT.keys() == STORED["methods"].keys()
    assert SHARED


@pytest.fixture(scope="module")
def mergekit(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a function from {name: YAML text} to what mergekit makes of each now."""
    python = os.environ.get("EVOMERGE_MERGEKIT_PYTHON")
    if not python:
        pytest.skip("set EVOMERGE_MERGEKIT_PYTHON to the Python of an environment with mergekit")

    def ask(texts: Mapping[str, str], *options: str) -> Any:
        folder = tmp_path_factory.mktemp("recipes")
        for name, text in texts.items():
            (folder / f"{name}.yaml").write_text(text)
        files = [str(folder / f"{name}.yaml") for name in texts]
        command = [python, str(HERE / "mergekit_recipes.py"), *options, *files]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500)
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(done.stdout)

    return ask


@pytest.mark.slow
def test_stored_results_are_what_mergekit_says_now_of_what_we_write(mergekit: Any) -> None:
    live = mergekit({path.stem: write_recipes(read_recipes(path)) for path in FILES})
    assert live["recipes"].keys() == STORED["recipes"].keys()
    for name in live["recipes"]:
        assert live["recipes"][name] == STORED["recipes"][name], name
    assert (live["methods"], live["modules"]) == (STORED["methods"], STORED["modules"])


# --- what search spaces produce ---

LAYERS = 6
GRANULARITIES: dict[str, dict[str, Any]] = {
    "global": {"granularity": "global"},
    "layer": {"granularity": "layer"},
    "block": {"granularity": {"block": 2}},
    "smooth": {"granularity": "layer", "smooth": 3},
    "groups": {"granularity": "layer", "groups": ["attention", "mlp", "norm", "embedding"]},
    "own-groups": {"granularity": {"block": 4}, "groups": [{"mine": "q_proj|norm"}]},
}
NAMES = STORED["recipes"]["linear"]["tensor_names"]


WHOLE_NUMBERS = ("max_iter",)  # genes are none


def free(method: str) -> dict[str, list[float]]:
    """Return the bounds of a method's numbers, so that a search varies all of them."""
    numbers = [p for p in METHODS[method].parameters if p.kind == "float" and p.name not in WHOLE_NUMBERS]
    return {p.name: [p.low, p.high] for p in numbers}


def space(method: str, granularity: str) -> SearchSpace:
    """Return a search space over two or three parents in which every number is a gene."""
    parents = {f"p{i}": f"m{i}" for i in range(2 if METHODS[method].max_models == 2 else 3)}
    config = ParameterSpaceConfig.model_validate(
        {"method": method, "bounds": free(method), **GRANULARITIES[granularity]}
    )
    return build_search_space(config, ParentsInfo("base", parents, tuple(NAMES), LAYERS, "bfloat16"))


def expressed(method: str, granularity: str) -> Recipe:
    """Return the recipe of a random genome, the same at each call."""
    draw = random.Random(f"{method} {granularity}")
    found = space(method, granularity)
    genome: dict[str, Any] = {}
    for gene in found.genes:
        if isinstance(gene, FloatGene):
            genome[gene.name] = draw.uniform(gene.low, gene.high)
        elif isinstance(gene, ChoiceGene):
            genome[gene.name] = draw.choice(gene.options)
        else:
            genome[gene.name] = gene.initial
    return found.express(genome)


SEARCHED = [(m, granularity) for m in SHARED if free(m) and METHODS[m].max_models != 1 for granularity in GRANULARITIES]


@pytest.mark.parametrize(("method", "granularity"), SEARCHED)
def test_a_recipe_that_search_makes_is_written_for_mergekit_without_loss(method: str, granularity: str) -> None:
    recipe = expressed(method, granularity)
    assert parse_recipe(to_mergekit(recipe)) == recipe


@pytest.mark.slow
def test_a_recipe_that_search_makes_means_the_same_to_mergekit(mergekit: Any) -> None:
    recipes = {f"{method}-{granularity}": expressed(method, granularity) for method, granularity in SEARCHED}
    live = mergekit({name: to_mergekit(recipe) for name, recipe in recipes.items()})
    assert live["recipes"].keys() == recipes.keys()
    for name, recipe in recipes.items():
        check_same(recipe, live["recipes"][name], live["methods"])


# --- mergekit's own examples ---


def own_examples() -> dict[str, str]:
    """Return every configuration in mergekit's examples, README and docs, by name."""
    source = os.environ.get("EVOMERGE_MERGEKIT_SOURCE")
    if not source:
        pytest.skip("set EVOMERGE_MERGEKIT_SOURCE to a git folder or working tree of mergekit")
    root = Path(source)
    if (root / "examples").is_dir():
        files = {str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if _has_recipes(path)}
    else:
        git = ["git", "-C", source]
        listed = subprocess.run(
            [*git, "ls-tree", "-r", "HEAD", "--name-only"], capture_output=True, text=True, check=True
        )
        names = [name for name in listed.stdout.split() if _has_recipes(Path(name))]
        files = {
            name: subprocess.run([*git, "show", f"HEAD:{name}"], capture_output=True, text=True, check=True).stdout
            for name in names
        }
    found: dict[str, str] = {}
    for name, text in files.items():
        texts = [text] if not name.endswith(".md") else re.findall(r"```ya?ml\n(.*?)```", text, re.DOTALL)
        blocks = [block for block in texts if re.search(r"^merge_method:", block, re.MULTILINE) and "..." not in block]
        found |= {re.sub(r"\W+", "-", f"{name}-{index}"): block for index, block in enumerate(blocks)}
    return found


def _has_recipes(path: Path) -> bool:
    return (path.parts[0] == "examples" or "examples" in path.parts) or (
        path.suffix == ".md" and "evolve" not in path.name
    )


def test_mergekits_own_examples_parse_and_round_trip() -> None:
    examples = own_examples()
    assert len(examples) >= 7
    for name, text in examples.items():
        stages = parse_recipes(text, name)
        again = parse_recipes(write_recipes(stages))
        assert [stage.recipe for stage in again] == [stage.recipe for stage in stages]


@pytest.mark.slow
def test_mergekits_own_examples_mean_the_same(mergekit: Any) -> None:
    examples = {
        name: text for name, text in own_examples().items() if parse_recipes(text)[0].recipe.merge_method in MERGEKIT
    }
    live = mergekit(examples, "--all")
    written = mergekit({name: stages_to_mergekit(parse_recipes(text)) for name, text in examples.items()}, "--all")
    assert written["recipes"] == live["recipes"]
    for name, text in examples.items():
        stages = parse_recipes(text, name)
        for stage in stages:
            title = name if len(stages) == 1 else f"{name}#{stage.name or ''}"
            check_same(stage.recipe, live["recipes"][title], live["methods"])


# --- what mergekit cannot say ---

TIES = "merge_method: ties\nbase_model: base\nmodels: [{model: a, parameters: {weight: 1}}, {model: b}]\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TIES.replace("ties", "iso_c"), "merge_method: mergekit has no merge method 'iso_c'"),
        (TIES + "parameters: {wait: 1}", "parameters.wait: mergekit's ties has no parameter 'wait'"),
        (TIES.replace("weight", "wait"), "models[0].parameters.wait: mergekit's ties has no parameter"),
        (TIES + "aim: {omega: 0.5}", "aim: mergekit does not relax"),
        (
            TIES.replace("ties", "karcher").replace("weight", "max_iter") + "parameters: {max_iter: 1.5}",
            "a whole number",
        ),
        (TIES + "align: {method: permutation}", "align: mergekit does not align"),
    ],
)
def test_what_mergekit_cannot_say_is_refused_in_words(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        to_mergekit(parse_recipe(text))
    assert message in str(raised.value)


def test_a_seed_is_told_and_not_passed_on() -> None:
    text = TIES.replace("ties", "dare_ties") + "seed: 7\n"
    written = to_mergekit(parse_recipe(text))
    assert written.startswith("# evomerge drops entries at random with seed 7.")
    assert parse_recipe(written) == parse_recipe(text.replace("seed: 7", ""))
    assert not to_mergekit(parse_recipe(TIES)).startswith("#")


def test_models_are_renamed_wherever_they_stand() -> None:
    text = (
        TIES
        + "tokenizer: {source: a, tokens: {x: {source: a}, y: {source: {kind: model_token, model: b, token: z}}}}\n"
    )
    renamed = to_mergekit(parse_recipe(text), {"base": "/base", "a": "/a", "b": "/b"})
    expected = text
    for name in "ab":
        expected = expected.replace(f"model: {name}", f"model: /{name}").replace(f"source: {name}", f"source: /{name}")
    assert renamed == to_mergekit(parse_recipe(expected.replace("base_model: base", "base_model: /base")))


def test_stages_that_mergekit_cannot_do_are_named() -> None:
    stages = [NamedRecipe(parse_recipe(TIES.replace("ties", "iso_c")), "one"), NamedRecipe(parse_recipe(TIES))]
    with pytest.raises(ConfigError, match=r"stage 'one': merge_method: mergekit has no"):
        stages_to_mergekit(stages)
