"""The terminal tables: what they show, and that they fit 80 columns."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console, RenderableType

from evomerge.recipes import PathStep, routed_recipe, write_recipe
from evomerge.reports.summary import ObjectiveInfo, TrialRow
from evomerge.reports.tables import (
    by_mean_rank,
    confirmation_table,
    front_table,
    methods_table,
    searchers_table,
)
from evomerge.testing.summaries import example_summary


def rendered(*parts: RenderableType, colour: bool = False) -> str:
    console = Console(file=io.StringIO(), width=80, force_terminal=colour, color_system="standard" if colour else None)
    console.print(*parts)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("objectives", [1, 2, 4])
def test_the_confirmation_table_fits_80_columns_with_every_word_whole(objectives: int) -> None:
    text = rendered(confirmation_table(example_summary(objectives=objectives)))
    assert max(map(len, text.splitlines())) <= 80
    for word in ("math", "japanese", "comparison", "counting", "base", "uniform", "trial", "0.87–0.93"):
        assert word in text
    assert "…" not in text


def test_the_confirmation_table_ends_with_the_verdicts_and_the_warnings() -> None:
    summary = replace(example_summary(gain=0.01), flags=["half the answers of [trial 3] were cut off"])
    lines = " ".join(rendered(confirmation_table(summary)).split())
    assert "beats the best parent (math) by +0.100 [+0.080, +0.120], p < 0.001" in lines
    assert "does not beat the uniform merge: +0.010 [−0.010, +0.030], p = 0.40" in lines
    assert "Warning: half the answers of [trial 3] were cut off" in lines


def test_the_confirmation_table_tells_the_winners_path_in_the_experiments_names() -> None:
    path = [PathStep("models/m", layer) for layer in range(3)] + [PathStep("models/[j]", 2, 0.9)]
    summary = replace(
        example_summary(),
        names={"models/m": "math"},
        winner_recipe_yaml=write_recipe(routed_recipe(path)),
    )
    lines = " ".join(rendered(confirmation_table(summary)).split())
    told = "math 0–2, models/[j] 2 (×0.9): 4 layers; embeddings: math, head: models/[j]"
    assert f"Path of trial {summary.pick}: {told}" in lines
    assert "Path of" not in rendered(confirmation_table(example_summary()))


def test_the_confirmation_table_of_an_unconfirmed_run_says_so() -> None:
    assert "Nothing is confirmed yet" in rendered(confirmation_table(example_summary(confirmed=False)))


def test_the_best_value_of_a_minimised_objective_is_its_smallest() -> None:
    objective = ObjectiveInfo("loss", "minimize")
    rows = [TrialRow(0, {}, {"loss": 2.5}), TrialRow(1, {}, {"loss": 1.5})]
    text = rendered(front_table(rows, [objective]), colour=True)
    assert "loss ↓" in text
    assert "\x1b[1;32m1.500" in "".join(text.split(" "))
    assert "\x1b[1;32m2.500" not in "".join(text.split(" "))


def test_the_front_table_marks_the_pick_and_says_how_many_rows_are_left_out() -> None:
    summary = example_summary(objectives=3, trials=80)
    ranked = by_mean_rank(summary.front, summary.objectives)
    text = rendered(front_table(summary.front, summary.objectives, limit=2, pick=ranked[0].number))
    assert f"★ {ranked[0].number}" in text
    assert f"and {len(ranked) - 2} more" in text


def test_trials_are_ranked_by_mean_rank_with_the_number_breaking_ties() -> None:
    objectives = [ObjectiveInfo("a"), ObjectiveInfo("b", "minimize")]
    rows = [
        TrialRow(0, {}, {"a": 0.1, "b": 9.0}),
        TrialRow(1, {}, {"a": 0.9, "b": 1.0}),
        TrialRow(2, {}, {"a": 0.9, "b": 1.0}),
        TrialRow(3, {}, None, "failed"),
    ]
    assert [row.number for row in by_mean_rank(rows, objectives)] == [1, 2, 0]


def test_catalogues_show_names_as_they_are_and_leave_web_addresses_out() -> None:
    row = {
        "name": "[bold]ties[/bold]",
        "summary": "elects signs",
        "paper": "Yadav et al. 2023, https://arxiv.org/abs/1; Yu 2024",
    }
    for table in (methods_table([row]), searchers_table([row])):
        text = rendered(table)
        assert "[bold]ties[/bold]" in text
        assert "Yadav et al. 2023; Yu 2024" in " ".join(text.split())
        assert "arxiv" not in text
