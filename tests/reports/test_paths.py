"""The figure of a path: every step once, in its parent's colour and shape, as large as its scale says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import plotly.graph_objects as go
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.recipes import PathStep, parse_recipe, routed_recipe, write_recipe
from evomerge.reports.html import render_report
from evomerge.reports.paths import (
    LABELLED_STEPS,
    PARENT_COLOURS,
    PARENT_SHAPES,
    path_figure,
    path_note,
    winner_recipe,
)
from evomerge.reports.summary import RunSummary
from evomerge.reports.tables import path_lines
from evomerge.testing.summaries import example_summary

NAMES = {"models/m": "math", "models/j": "japanese"}
scales = st.floats(-3, 3).filter(lambda scale: abs(scale) > 0.01)
steps = st.builds(PathStep, st.sampled_from("abc"), st.integers(0, 40), scales | st.just(1.0))
paths = st.lists(steps, min_size=1, max_size=60)


def drawn(path: list[PathStep], names: dict[str, str] | None = None) -> go.Figure:
    figure = path_figure(routed_recipe(path), names or {})
    assert figure is not None
    return figure


def marks(figure: go.Figure) -> list[Any]:
    return [trace for trace in figure.data if "markers" in trace.mode]


def routed_summary(path: list[PathStep]) -> RunSummary:
    return replace(example_summary(), names=NAMES, winner_recipe_yaml=write_recipe(routed_recipe(path)))


@settings(deadline=None, max_examples=50)
@given(paths)
def test_every_step_is_one_mark_of_its_parent_at_its_place_and_layer(path: list[PathStep]) -> None:
    found = [
        (x, trace.name, y, symbol.endswith("-open"))
        for trace in marks(drawn(path))
        for x, y, symbol in zip(trace.x, trace.y, trace.marker.symbol, strict=True)
    ]
    expected = [(place, step.model, step.layer, step.scale < 0) for place, step in enumerate(path)]
    assert sorted(found) == expected


@settings(deadline=None, max_examples=50)
@given(paths)
def test_the_line_goes_through_all_steps_in_order(path: list[PathStep]) -> None:
    (line,) = [trace for trace in drawn(path).data if trace.mode == "lines"]
    assert list(zip(line.x, line.y, strict=True)) == [(place, step.layer) for place, step in enumerate(path)]


@settings(deadline=None, max_examples=50)
@given(paths)
def test_marks_grow_with_the_size_of_the_scale_whatever_its_sign(path: list[PathStep]) -> None:
    sizes = {x: size for trace in marks(drawn(path)) for x, size in zip(trace.x, trace.marker.size, strict=True)}
    in_order = [sizes[place] for place, _ in sorted(enumerate(path), key=lambda one: abs(one[1].scale))]
    assert in_order == sorted(in_order)
    assert min(in_order) > 0


def test_usual_scales_differ_in_size_and_those_of_a_long_path_have_room() -> None:
    sizes = marks(drawn([PathStep("a", n, scale) for n, scale in enumerate((0.5, 0.9, 1, 1.2, 1.5))]))[0].marker.size
    assert len(set(sizes)) == 5
    long = marks(drawn([PathStep("a", n % 40) for n in range(200)]))[0].marker.size
    assert max(long) * 200 <= 600


def test_parents_differ_in_colour_and_in_shape() -> None:
    traces = marks(drawn([PathStep(model, 0) for model in "abcd"]))
    assert len({trace.marker.color for trace in traces}) == 4
    assert len({trace.marker.symbol[0] for trace in traces}) == 4
    many = [
        (trace.marker.color, trace.marker.symbol[0])
        for trace in marks(drawn([PathStep(f"m{n}", 0) for n in range(20)]))
    ]
    assert len(set(many)) == len(PARENT_COLOURS) * len(PARENT_SHAPES) == 20


@pytest.mark.parametrize("card", ["#ffffff", "#1a1e25"])  # report.css: --card
def test_colours_can_be_seen_on_the_light_and_the_dark_page(card: str) -> None:
    assert min(contrast(colour, card) for colour in PARENT_COLOURS) >= 3  # WCAG 2.2, 1.4.11


def contrast(one: str, other: str) -> float:
    dark, light = sorted(map(luminance, (one, other)))
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_scales_are_written_beside_the_marks_of_short_paths_and_always_told_on_hovering() -> None:
    for count in (LABELLED_STEPS, LABELLED_STEPS + 1):
        (trace,) = marks(drawn([PathStep("a", n, -0.5 if n == 1 else 1) for n in range(count)]))
        assert trace.text[:3] == ("", "×−0.5", "")
        assert "%{text}" in trace.hovertemplate
        assert (trace.mode == "markers+text") == (count <= LABELLED_STEPS)


def test_the_models_of_embeddings_and_head_are_named() -> None:
    figure = drawn([PathStep("a", 0), PathStep("b", 1)], {"a": "math", "b": "<i>"})
    assert figure.layout.annotations[0].text == "embeddings: math, head: &lt;i&gt;"
    assert [trace.name for trace in marks(figure)] == ["math", "&lt;i&gt;"]


def test_the_note_explains_what_is_drawn_and_no_more() -> None:
    def note(scale: float) -> str:
        return path_note(routed_recipe([PathStep("a", 0), PathStep("a", 1, scale)]))

    assert note(1) == ""
    assert "multiplied by" in note(0.5)
    assert "hollow" not in note(0.5)
    assert "hollow" in note(-0.5)


def test_the_report_draws_and_tells_the_winners_path_by_nicknames() -> None:
    path = [PathStep("models/m", 0), PathStep("models/j", 1, 0.9), PathStep("models/m", 2)]
    summary = routed_summary(path)
    page = render_report(summary)
    assert 'id="figure-winner-path"' in page
    assert "Its path: math 0, japanese 1 (×0.9), math 2: 3 layers; embeddings and head: math." in page
    recipe = winner_recipe(summary)
    assert recipe is not None
    (line,) = path_lines(
        {"trial 7": recipe, "trial 8": parse_recipe("{merge_method: linear, models: [{model: a}]}")}, {}
    )
    assert line.plain.startswith("Path of trial 7: models/m 0, models/j 1")


def test_a_recipe_without_a_path_has_no_figure_and_leaves_no_trace_in_the_report() -> None:
    recipe = "{merge_method: linear, models: [{model: a}, {model: b}]}"
    assert path_figure(parse_recipe(recipe), {}) is None
    for text in (recipe, "no recipe", None):
        page = render_report(replace(example_summary(), winner_recipe_yaml=text))
        assert "winner-path" not in page
        assert "Its path" not in page
