"""The figures: the right points in the right group, for every number of objectives."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import plotly.graph_objects as go
import pytest

from evomerge.reports.front_plots import front_figures, profile_figure
from evomerge.reports.importance import GeneImportance, over_depth
from evomerge.reports.plots import (
    MANY_POINTS,
    TOP_GENES,
    depth_figure,
    genome_figure,
    importance_figure,
    progress_figure,
)
from evomerge.testing.summaries import example_summary


def traces(figure: go.Figure) -> dict[str, Any]:
    return {trace.name: trace for trace in figure.data}


def test_every_trial_and_reference_is_drawn_once_in_its_group() -> None:
    summary = example_summary(failed=(3,))
    figure, _ = front_figures(summary)
    found = traces(figure)
    assert len(found["trials"].x) + len(found["front"].x) == len(summary.complete)
    assert len(found["front"].x) == len(summary.front)
    assert list(found["winner"].text) == [f"trial {summary.pick}"]
    assert set(found["parents"].text) == {"math", "japanese", "comparison", "counting"}
    assert (list(found["uniform merge"].x), list(found["base"].y)) == ([0.6], [0.4])


def test_the_front_is_drawn_as_the_edge_of_what_it_dominates() -> None:
    assert traces(front_figures(example_summary())[0])["front"].line.shape == "vh"
    swapped = example_summary(minimize_last=True)
    swapped = replace(swapped, objectives=swapped.objectives[::-1])
    assert traces(front_figures(swapped)[0])["front"].line.shape == "hv"


def test_the_confirmed_plot_has_the_intervals_as_error_bars_inside_the_axes() -> None:
    summary = example_summary()
    confirmed = front_figures(summary)[1]
    assert confirmed is not None
    assert traces(confirmed)["winner"].error_x.array[0] == pytest.approx(0.03)
    assert traces(confirmed)["winner"].error_y.arrayminus[0] == pytest.approx(0.03)
    highest = max(row.objectives["arithmetic_ja"].high for row in summary.confirmed)
    assert confirmed.layout.xaxis.range[1] > highest


def test_an_unconfirmed_run_has_no_confirmed_plot() -> None:
    assert front_figures(example_summary(confirmed=False))[1] is None


def test_with_four_objectives_a_menu_offers_every_pair() -> None:
    summary = example_summary(objectives=4)
    figure, _ = front_figures(summary)
    buttons = figure.layout.updatemenus[0].buttons
    assert [button.label for button in buttons][:2] == [
        "arithmetic_ja × arithmetic_en",
        "arithmetic_ja × reading_ja",
    ]
    assert len(buttons) == 6
    data, layout = buttons[5].args
    uniform = [trace.name for trace in figure.data].index("uniform merge")
    assert data["x"][uniform] == [summary.references[-1].objectives["reading_ja"]]
    assert layout["yaxis.title.text"] == "counting_en"


def test_the_profile_puts_the_better_value_higher_in_both_directions() -> None:
    summary = example_summary(objectives=3, minimize_last=True)
    found = traces(profile_figure(summary))
    assert found["comparison"].y[2] == 1.0
    assert found["math"].y[0] == 1.0
    assert min(found["japanese"].y[0], found["japanese"].y[2]) == 0.0


def test_progress_follows_the_best_so_far_in_the_objectives_direction() -> None:
    summary = example_summary(minimize_last=True)
    for objective in summary.objectives:
        best = list(traces(progress_figure(summary, objective))["best so far"].y)
        assert best == sorted(best, reverse=objective.sign < 0)
        values = [(trial.objectives or {})[objective.name] for trial in summary.complete]
        assert best[-1] == (max(values) if objective.sign > 0 else min(values))


def test_many_trials_are_drawn_with_webgl() -> None:
    summary = example_summary(objectives=1, trials=3, confirmed=False)
    rows = [replace(summary.trials[0], number=number) for number in range(MANY_POINTS + 1)]
    figure = progress_figure(replace(summary, trials=rows), summary.objectives[0])
    assert figure.data[0].type == "scattergl"
    assert progress_figure(summary, summary.objectives[0]).data[0].type == "scatter"


def test_only_the_most_important_genes_are_drawn_the_first_on_top() -> None:
    genes = [GeneImportance(f"gene{i}", 1 / (i + 2), trend) for i, trend in enumerate([0.9, -0.9, None] * 20)]
    figure = importance_figure(genes)
    assert list(figure.data[0].y) == [f"gene{i}" for i in range(TOP_GENES)]
    assert figure.layout.yaxis.autorange == "reversed"
    colours = figure.data[0].marker.color
    assert len({colours[0], colours[1], colours[2]}) == 3


def test_a_genome_over_depth_is_a_heat_map_with_gaps_where_genes_are_missing() -> None:
    table = over_depth({"a.weight.layer0": 0.1, "a.weight.layer1": 0.2, "b.weight.layer1": 0.3})
    assert table is not None
    heat = depth_figure(table, share=False).data[0]
    assert [list(row) for row in heat.z] == [[0.1, 0.2], [None, 0.3]]


def test_the_genome_bars_keep_the_order_of_the_genome() -> None:
    figure = genome_figure({"weight": 0.5, "k": 3})
    assert list(figure.data[0].y) == ["weight", "k"]


def test_markup_in_names_is_escaped_in_figures() -> None:
    summary = example_summary(confirmed=False)
    rows = [replace(summary.references[0], name="<i>x</i>"), *summary.references[1:]]
    figure, _ = front_figures(replace(summary, references=rows))
    assert "&lt;i&gt;x&lt;/i&gt;" in traces(figure)["parents"].text
