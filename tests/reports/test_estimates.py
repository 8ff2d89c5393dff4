"""What reports say of estimated scores: the figures add up, errors are shown, and exact runs say nothing of it."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from evomerge.reports import estimates as told
from evomerge.reports.front_plots import front_figures
from evomerge.reports.html import render_report
from evomerge.reports.score_table import MEAN, search_scores
from evomerge.reports.summary import AbilityRow, EstimateCheck, Estimates, Interval, ItemsSpent, RunSummary, TrialRow
from evomerge.reports.tables import front_table
from evomerge.testing.summaries import example_summary

SPENT = {
    "arithmetic_ja": ItemsSpent(search=400, calibration=4800, trials=1180, exact=23600),
    "arithmetic_en": ItemsSpent(search=400, calibration=4800, trials=590, exact=23600),
}


def check(trial: int, estimate: float, confirmed: float, reach: float) -> EstimateCheck:
    value = estimate - confirmed
    return EstimateCheck(
        trial,
        Interval.estimated(estimate, 0.05),
        Interval(confirmed, confirmed - 0.02, confirmed + 0.03, 400),
        Interval(value, value - reach, value + reach),
    )


def estimated(*, confirmed: bool = True) -> RunSummary:
    """A run with two objectives, of standard errors 0.03 and 0.04."""
    plain = example_summary(confirmed=confirmed)
    names = [objective.name for objective in plain.objectives]
    errors = dict(zip(names, (0.03, 0.04), strict=True))
    found = Estimates("gmp-irt", 20, False, "", 12, 59, SPENT)
    if confirmed:
        checks = [check(row.number, 0.6, 0.55, 0.1) for row in plain.front]
        abilities = [AbilityRow("math", "parent", {names[0]: (1.5, 0.25)}), AbilityRow("trial 7", "trial", {})]
        found = replace(
            found, checks=dict.fromkeys(names, checks), abilities=abilities, dimensions=dict.fromkeys(names, 1)
        )
    return replace(plain, estimates=found, trials=[replace(trial, standard_errors=errors) for trial in plain.trials])


def rendered(summary: RunSummary) -> str:
    console = Console(file=io.StringIO(), width=80)
    console.print(front_table(summary.front, summary.objectives, pick=summary.pick, confirmed=summary.confirmed))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_an_estimates_interval_is_1_96_standard_errors_and_stays_in_the_range_of_scores() -> None:
    interval = Interval.estimated(0.5, 0.1)
    assert (interval.low, interval.high) == pytest.approx((0.304, 0.696))
    assert Interval.estimated(0.9, 0.1).high == 1.0
    assert Interval.estimated(0.05, 0.1).low == 0.0
    assert TrialRow(0, {}, {"perplexity": 31.0}).interval("perplexity") == Interval(31.0, 31.0, 31.0)


def test_the_cost_is_calibration_and_trials_against_all_items_for_every_trial() -> None:
    found = estimated().estimates
    assert found is not None
    assert told.cost(found) == (
        "11,370 items asked; exact scores of the same 59 trials take 47,200: 35,830 saved, a factor of 4.2."
    )
    rows = {row.task: dict(zip(told.cost_columns(found), row.cells, strict=True)) for row in told.cost_rows(found)}
    assert rows["arithmetic_en"]["a trial"] == "10"
    assert rows["arithmetic_ja"]["in all"] == "5,980"
    assert rows["all"] == {
        "search items": "800",
        "a trial": "30",
        "trials": "1,770",
        "calibration": "9,600",
        "in all": "11,370",
        "exact": "47,200",
        "factor": "4.2",
    }


def test_a_search_too_short_for_its_calibration_is_not_called_a_saving() -> None:
    spent = {"task": ItemsSpent(search=100, calibration=1200, trials=100, exact=500)}
    found = Estimates("p-irt", 20, False, "", 12, 5, spent)
    assert told.cost(found).endswith("take 500: 800 fewer, as calibration costs the same for any number of trials.")
    assert [row.task for row in told.cost_rows(found)] == ["task"]
    assert told.cost(replace(found, evaluated=0, spent={"task": ItemsSpent(100, 1200, 0, 0)})) == (
        "1,200 items asked so far."
    )


def test_soft_responses_are_counted_apart() -> None:
    found = Estimates("gmp-irt", 20, False, "", 0, 5, {"task": ItemsSpent(100, 0, 100, 500, soft=2500)})
    assert told.cost_columns(found)[-1] == "probabilities"
    assert told.cost_rows(found)[0].cells[-1] == "2,500"
    assert "100 items asked" in told.cost(found)


def test_the_method_says_how_many_items_and_which_bank() -> None:
    found = estimated().estimates
    assert found is not None
    assert told.method(found) == (
        "A trial's scores are estimated by gmp-irt from 20 of the 400 search items of each task, with item banks that "
        "the run made from its reference models and 12 random merges."
    )
    other = replace(found, adaptive=True, bank="banks/mine")
    assert "from at most 20 of the 400 search items of each task, fewer where" in told.method(other)
    assert told.method(other).endswith("with the item bank banks/mine.")


def test_agreement_is_of_estimate_minus_confirmed() -> None:
    checks = [check(0, 0.7, 0.6, 0.09), check(1, 0.5, 0.55, 0.06)]
    assert told.agreement(checks) == (
        "mean error +0.025, mean absolute error 0.075; 1 of 2 intervals of the difference hold 0"
    )
    assert told.agreement([check(0, 0.7, 0.6, 0.0)]) == "mean error +0.100, mean absolute error 0.100"


def test_the_figure_has_both_intervals_and_the_diagonal() -> None:
    diagonal, others, winner = told.check_figure([check(3, 0.7, 0.6, 0.1), check(8, 0.5, 0.55, 0.1)], 8).data
    assert list(diagonal.x) == list(diagonal.y)
    assert (list(others.x), list(others.y)) == ([0.7], [0.6])
    assert others.error_x.array[0] == pytest.approx(0.098)
    assert (others.error_y.arrayminus[0], others.error_y.array[0]) == pytest.approx((0.02, 0.03))
    assert (winner.name, list(winner.x)) == ("winner", [0.5])


def test_several_abilities_are_shown_as_the_score_they_lead_to() -> None:
    summary = estimated()
    assert summary.estimates is not None
    found = replace(summary.estimates, dimensions={"arithmetic_ja": 2, "arithmetic_en": 1})
    assert told.ability_columns(found, summary.objectives) == ["arithmetic_ja (expected score)", "arithmetic_en"]
    assert "several abilities" in told.ability_note(found)
    assert "several abilities" not in told.ability_note(summary.estimates)
    assert told.ability_rows(found, summary.objectives) == [
        ("math", "parent", ["1.500 ± 0.250", "–"]),
        ("trial 7", "winner", ["–", "–"]),
    ]


def test_the_front_figure_has_the_intervals_of_the_front_alone() -> None:
    searched = {trace.name: trace for trace in front_figures(estimated())[0].data}
    assert list(searched["front"].error_y.array) == pytest.approx([1.96 * 0.04] * len(searched["front"].x))
    assert searched["winner"].error_x.array[0] == pytest.approx(1.96 * 0.03)
    assert searched["trials"].error_x.visible is False
    assert searched["parents"].error_x.visible is False
    assert searched["front"].line.shape == "vh"  # still the edge of what it dominates


def test_tables_show_standard_errors_and_intervals() -> None:
    text = rendered(estimated())
    assert "±0.030" in text
    assert "±0.040" in text
    assert "standard errors of scores estimated" in text
    assert max(map(len, text.splitlines())) <= 80
    table = search_scores(estimated(confirmed=False))
    by_kind = {row.kind: row for row in table.rows}
    assert all(cell.interval for cell in by_kind["trial"].cells)
    assert not any(cell.interval for cell in by_kind["parent"].cells)
    assert "estimates" in table.note
    trial = estimated(confirmed=False).front[0]
    mean = sum((trial.objectives or {}).values()) / 2
    assert table.columns[-1] == MEAN
    row = next(row for row in table.rows if row.label == f"trial {trial.number}")
    assert row.cells[-1].interval == f"{mean - 1.96 * 0.025:.2f}–{mean + 1.96 * 0.025:.2f}"  # √(0.03² + 0.04²) / 2


def test_the_report_has_the_section_only_where_scores_are_estimated() -> None:
    exact, page, going = (
        render_report(summary) for summary in (example_summary(), estimated(), estimated(confirmed=False))
    )
    for words in ('<section id="estimates">', 'id="figure-estimates-1"', "11,370 items asked", "1.500 ± 0.250"):
        assert words in page
    assert "11,370 items asked" in going
    assert 'id="figure-estimates-0"' not in going
    script = exact.index("* plotly.js v")
    assert "stimate" not in exact[:script]
    assert "±" not in rendered(example_summary())


def test_the_name_of_a_bank_cannot_become_markup() -> None:
    summary = estimated()
    assert summary.estimates is not None
    hostile = replace(summary, estimates=replace(summary.estimates, bank="<script>alert(1)</script>"))
    assert "<script>alert(1)" not in render_report(hostile)
