"""Paths of layers as recipes: both ways, as few slices as can be, mergekit's where there are no scales."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.errors import ConfigError
from evomerge.recipes import PathStep, parse_recipe, path_of, plan, routed_recipe, to_mergekit, write_recipe

steps = st.builds(PathStep, st.sampled_from(("a", "b")), st.integers(0, 3), st.sampled_from((1.0, 0.5, -2.0)))
SCALED = "slices: [{input_scale: 2, sources: [{model: a, layer_range: [0, 2]}]}]"
NAMES = {m: [f"model.layers.{n}.w" for n in range(4)] + ["model.embed.w", "lm_head.w"] for m in ("a", "b", "c")}


@given(st.lists(steps, min_size=1, max_size=12))
def test_a_path_is_read_back_from_its_recipe(path):
    recipe = parse_recipe(write_recipe(routed_recipe(path)))
    assert path_of(recipe) == tuple(path)
    for left, right in zip(recipe.slices, recipe.slices[1:], strict=False):
        ends = left.sources[0].layer_range[1] == right.sources[0].layer_range[0]
        assert not (ends and left.sources[0].model == right.sources[0].model and left.input_scale == right.input_scale)


def test_recipes_that_are_no_paths():
    assert path_of(parse_recipe("merge_method: passthrough\nmodels: [{model: a}]\n")) is None
    scaled = (
        "merge_method: passthrough\nslices: [{sources: [{model: a, layer_range: [0, 2]}]}]\nparameters: {scale: 2}\n"
    )
    assert path_of(parse_recipe(scaled)) is None


def test_what_is_outside_the_layers_comes_from_where_the_recipe_says():
    path = [PathStep("a", 0), PathStep("b", 1)]
    merged = {"merge_method": "linear", "models": [{"model": "a", "parameters": {"weight": 1}}, {"model": "c"}]}
    for outside, inputs in ((None, {"model.embed.w": ["a"], "lm_head.w": ["b"]}), ("c", ["c"]), (merged, ["a", "c"])):
        recipe = routed_recipe(path, outside=outside)
        found = {t.name: [i.model for i in t.inputs] for t in plan(recipe, NAMES) if t.layer is None}
        assert found == (inputs if outside is None else dict.fromkeys(("model.embed.w", "lm_head.w"), inputs))


def test_models_outside_come_first_among_the_parents():
    assert routed_recipe([PathStep("a", 0), PathStep("b", 1)], outside="c").parents() == ("c", "a", "b")


def test_an_outside_that_the_path_implies_is_left_out():
    path = [PathStep("a", 0), PathStep("b", 1), PathStep("a", 3)]
    assert routed_recipe(path, outside="a") == routed_recipe(path)
    to_mergekit(routed_recipe(path, outside="a"))


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        (routed_recipe([PathStep("a", 0, 0.5)]), "slices[0].input_scale: mergekit does not scale"),
        (routed_recipe([PathStep("a", 0)], outside="b"), "outside: mergekit takes embeddings"),
    ],
)
def test_mergekit_has_no_scales_and_no_outside(recipe, words):
    with pytest.raises(ConfigError) as caught:
        to_mergekit(recipe)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("slices: []", "either models or slices"),
        ("slices: [{input_scale: 0, sources: [{model: a, layer_range: [0, 2]}]}]", "input_scale of 0"),
        ("models: [{model: a}]\noutside: b", "outside is for recipes with slices"),
        (f"{SCALED}\nparameters: {{scale: 2}}", "an input_scale is for layers as they are"),
        (f"modules: {{text_decoder: {{{SCALED}}}}}", "slices of a module have no input_scale"),
        ("slices: [{sources: [{model: a, layer_range: [0, 2]}]}]\noutside: {merge_method: linear}", "models"),
    ],
)
def test_bad_paths_are_refused(text, words):
    with pytest.raises(ConfigError) as caught:
        parse_recipe(f"merge_method: passthrough\n{text}\n")
    assert words in str(caught.value)


def test_only_slices_of_one_model_are_scaled():
    sources = "[{model: a, layer_range: [0, 2]}, {model: b, layer_range: [0, 2]}]"
    with pytest.raises(ConfigError, match="only passthrough slices of one model"):
        parse_recipe(f"merge_method: linear\nslices: [{{input_scale: 0.5, sources: {sources}}}]\n")
