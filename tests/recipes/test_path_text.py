"""Paths in words: every step told once, scales and ends included, and nothing said of recipes without a path."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.recipes import PathStep, parse_recipe, path_of, routed_recipe
from evomerge.recipes.path_text import outside_in_words, path_in_words, recipe_in_words, runs_of

SCALES = (1.0, 0.9, 1.1, -0.5, -2.0)
steps = st.builds(PathStep, st.sampled_from(("a", "b")), st.integers(0, 3), st.sampled_from(SCALES))
MERGED = {"merge_method": "linear", "models": [{"model": "a", "parameters": {"weight": 1}}, {"model": "c"}]}


def path(*runs: tuple[str, int, int, float]) -> list[PathStep]:
    return [PathStep(model, layer, scale) for model, first, last, scale in runs for layer in range(first, last + 1)]


@given(st.lists(steps, min_size=1, max_size=12))
def test_the_runs_hold_every_step_once_in_order(taken: list[PathStep]) -> None:
    runs = runs_of(taken)
    assert [PathStep(r.model, r.first + i, scale) for r in runs for i, scale in enumerate(r.scales)] == taken
    assert all(run.last - run.first + 1 == len(run.scales) for run in runs)


@given(st.lists(steps, min_size=1, max_size=12))
def test_a_run_ends_where_the_model_the_order_or_the_kind_of_scale_changes_and_nowhere_else(
    taken: list[PathStep],
) -> None:
    kinds = [(step.scale == 1, step.scale < 0) for step in taken]
    changes = sum(
        (step.model, step.layer) != (before.model, before.layer + 1) or kind != kind_before
        for before, step, kind_before, kind in zip(taken, taken[1:], kinds, kinds[1:], strict=False)
    )
    assert len(runs_of(taken)) == changes + 1


@given(st.lists(steps, min_size=1, max_size=12))
def test_the_words_count_the_layers_and_name_every_run_in_order(taken: list[PathStep]) -> None:
    words = path_in_words(routed_recipe(taken), {"a": "A", "b": "B"}) or ""
    route, ends = words.split("; ")
    told = route.rpartition(": ")[0].split(", ")
    assert [part.split(" ")[0] for part in told] == [run.model.upper() for run in runs_of(taken)]
    assert route.endswith(f": {len(taken)} layers" if len(taken) > 1 else ": 1 layer")
    assert ends.startswith("embeddings")


def test_a_path_is_told_by_nicknames_with_scales_and_ends() -> None:
    taken = path(("x/math", 0, 3, 1), ("x/ja", 2, 5, 0.9), ("x/math", 6, 6, -1.25), ("x/math", 7, 7, 1))
    assert path_in_words(routed_recipe(taken), {"x/math": "math", "x/ja": "japanese"}) == (
        "math 0–3, japanese 2–5 (×0.9 each), math 6 (×−1.25), math 7: 10 layers; embeddings and head: math"
    )


def test_different_scales_of_a_run_are_told_by_their_ends() -> None:
    taken = [PathStep("a", n, scale) for n, scale in enumerate((0.9, 1.1, 1.04, -0.2, -0.5))]
    words = path_in_words(routed_recipe(taken)) or ""
    assert words.startswith("a 0–2 (×0.9 to ×1.1), a 3–4 (×−0.5 to ×−0.2): 5 layers")


@pytest.mark.parametrize(
    ("outside", "words"),
    [
        (None, "embeddings: a, head: B"),
        ("c", "embeddings and head: c"),
        (MERGED, "embeddings and head: linear of a and c"),
    ],
)
def test_what_is_outside_the_layers_is_named(outside: object, words: str) -> None:
    recipe = routed_recipe([PathStep("a", 0), PathStep("b", 1)], outside=outside)
    assert outside_in_words(recipe, {"b": "B"}) == words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{merge_method: ties, base_model: z, models: [{model: a}, {model: b}]}", "ties of a, b and z"),
        ("{merge_method: passthrough, models: [{model: a}]}", "a"),
        ("{merge_method: linear, models: [{model: a}]}", "linear of a"),
    ],
)
def test_recipes_without_a_path_are_told_by_method_and_parents(text: str, words: str) -> None:
    recipe = parse_recipe(text)
    assert path_of(recipe) is None
    assert path_in_words(recipe) is None
    assert recipe_in_words(recipe) == words
    with pytest.raises(ValueError, match="no path"):
        outside_in_words(recipe)
