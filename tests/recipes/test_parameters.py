"""Which value a parameter has for which tensor (compared with mergekit in tests/references)."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.recipes import Recipe, evaluate_setting, parse_recipe, resolve_parameter


def value(recipe: Recipe, model: str | None, tensor: str = "model.layers.0.mlp.up.weight", **more: Any) -> Any:
    more = {"depth": 0.0, "default": "default", **more}
    return resolve_parameter(recipe, "weight", tensor=tensor, model=model, **more)


def test_model_wins_over_recipe_and_recipe_over_default() -> None:
    recipe = parse_recipe(
        "merge_method: linear\nmodels: [{model: a, parameters: {weight: 1}}, {model: b}]\nparameters: {weight: 2}"
    )
    assert [value(recipe, "a"), value(recipe, "b"), value(recipe, None)] == [1, 2, 2]
    assert resolve_parameter(recipe, "other", tensor="x", depth=0, model="a", default=3) == 3


def test_slice_source_wins_over_slice_and_slice_over_recipe() -> None:
    recipe = parse_recipe(
        "merge_method: linear\nparameters: {weight: 3}\nslices:\n"
        "- sources:\n  - {model: a, layer_range: [0, 1], parameters: {weight: 1}}\n"
        "  - {model: b, layer_range: [0, 1]}\n"
        "  parameters: {weight: 2}\n"
        "- sources: [{model: a, layer_range: [1, 2]}]\n"
    )
    assert [value(recipe, m, slice_index=0) for m in ("a", "b", None)] == [1, 2, 2]
    assert [value(recipe, m, slice_index=1) for m in ("a", None)] == [3, 3]


def test_a_list_in_which_no_filter_matches_passes_on_to_the_next_scope() -> None:
    recipe = parse_recipe(
        "merge_method: linear\nmodels: [{model: a, parameters: {weight: [{filter: attn, value: 1}]}}]\n"
        "parameters: {weight: [{filter: mlp, value: 2}]}"
    )
    assert value(recipe, "a", "layers.0.attn.q") == 1
    assert value(recipe, "a", "layers.0.mlp.up") == 2
    assert value(recipe, "a", "layers.0.norm") == "default"


def test_the_first_filter_that_matches_wins() -> None:
    setting = parse_recipe(
        "merge_method: x\nmodels: [{model: a}]\n"
        "parameters: {w: [{filter: layers.1., value: 1}, {filter: up, value: 2}, {value: 3}, "
        "{filter: q, value: 4}]}"
    ).parameters["w"]
    names = ["layers.1.up", "layers.11.up", "layers.11.q"]
    assert [evaluate_setting(setting, name, 0.5) for name in names] == [1, 2, 3]


@given(st.integers(1, 200), st.randoms(use_true_random=False))
def test_a_gradient_gives_exactly_its_points_at_the_layers(count: int, random: Any) -> None:
    points = [random.uniform(-2, 2) for _ in range(count)]
    depths = [i / (count - 1) for i in range(count)] if count > 1 else [1.0]
    assert [evaluate_setting(tuple(points), "x", depth) for depth in depths] == points


def test_a_gradient_is_exact_where_mergekits_formula_is_a_rounding_error_off() -> None:
    assert 1 / 49 * 49 < 1
    points = (0.0, *(0.1 * i for i in range(1, 50)))
    assert evaluate_setting(points, "x", 1 / 49) == 0.1


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=9), st.floats(0, 1))
def test_a_gradient_stays_between_its_neighbouring_points(points: list[float], depth: float) -> None:
    found = evaluate_setting(tuple(points), "x", depth)
    left = min(int(depth * (len(points) - 1)), len(points) - 2)
    near = points[max(left - 1, 0) : left + 3]
    assert min(near) - 1e-9 <= found <= max(near) + 1e-9


@pytest.mark.parametrize(("depth", "expected"), [(0.0, 1.0), (0.25, 1.5), (0.5, 2.0), (0.75, 3.0), (1.0, 4.0)])
def test_a_gradient_is_piecewise_linear(depth: float, expected: float) -> None:
    assert evaluate_setting((1, 2, 4), "x", depth) == expected


def test_gradients_of_switches_and_words_choose_instead_of_interpolating() -> None:
    chosen = [evaluate_setting((True, False, True), "x", depth, interpolate=False) for depth in (0, 0.4, 0.5, 1)]
    assert chosen == [True, True, False, True]
    assert evaluate_setting((True, False), "x", 0.25) == 0.75  # a number written as a switch, as mergekit takes it
    assert evaluate_setting(("a", "b"), "x", 0.9) == "a"
    recipe = parse_recipe("merge_method: x\nmodels: [{model: a}]\nparameters: {normalize: [1, 0]}")
    found = resolve_parameter(recipe, "normalize", tensor="x", depth=0.5, model=None, default=True)
    assert found == 1


def test_a_modules_parameters_stand_between_its_slices_and_the_recipes() -> None:
    recipe = parse_recipe(
        "merge_method: linear\nparameters: {weight: 5}\nmodules:\n"
        "  one: {models: [{model: a, parameters: {weight: 1}}, {model: b}], parameters: {weight: 3}}\n"
        "  two:\n    slices:\n    - {sources: [{model: a, layer_range: [0, 1]}]}\n"
        "    - {sources: [{model: b, layer_range: [0, 1]}], parameters: {weight: 4}}\n"
    )
    assert [value(recipe, m, slice_index=0) for m in ("a", "b", None)] == [1, 3, 3]
    assert [value(recipe, m, slice_index=1) for m in ("a", "b", None)] == [5, 5, 5]
    assert [value(recipe, m, slice_index=2) for m in ("a", "b", None)] == [4, 4, 4]
