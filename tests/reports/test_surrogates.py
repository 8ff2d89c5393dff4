"""What reports say of surrogates: how well they fit, how far off they were, and nothing where there are none."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from evomerge.reports import surrogates as told
from evomerge.reports.front_plots import front_figures, profile_figure
from evomerge.reports.html import render_report
from evomerge.reports.summary import Foretelling, RunSummary, Surrogates
from evomerge.searchers.surrogates.explanation import SurrogateFacts
from evomerge.testing.summaries import example_summary


def facts(left_out: float = 0.9, ridge: float = 0.0) -> SurrogateFacts:
    return SurrogateFacts(
        link="identity",
        evaluations=40,
        coefficients=15,
        ridge=ridge,
        misfit=0.01,
        r2=0.97,
        r2_left_out=left_out,
        r2_error=0.02,
        error_left_out=0.031,
    )


FORETOLD = [
    Foretelling(20, 0.50, 0.05, 0.598),  # 1.96 standard errors: just inside
    Foretelling(21, 0.50, 0.05, 0.61),
    Foretelling(22, 0.60, 0.01, 0.52),
    Foretelling(23, 0.60, 0.0, 0.6),
]


def fitted(objectives: int = 2, *, poor: bool = False) -> RunSummary:
    plain = example_summary(objectives=objectives)
    names = [objective.name for objective in plain.objectives]
    found = Surrogates(
        {name: facts(0.2 if poor and name == names[0] else 0.9) for name in names},
        [dict.fromkeys(names, value) for value in (0.71, 0.72, 0.73)],
        dict.fromkeys(names, FORETOLD),
    )
    return replace(plain, surrogates=found)


def test_an_interval_holds_what_is_within_1_96_standard_errors() -> None:
    assert [one.holds for one in FORETOLD] == [True, False, False, True]
    assert FORETOLD[2].errors == pytest.approx(8)
    assert Foretelling(0, 0.5, 0.0, 0.6).errors == float("inf")


def test_the_agreement_is_told_in_numbers() -> None:
    assert told.agreement(FORETOLD) == (
        "the 95% interval foretold holds the score of 2 of 4 trials (50%); mean miss +0.032, mean absolute miss 0.072"
    )


def test_the_worst_misses_come_first() -> None:
    found = Surrogates({}, (), {"a": FORETOLD, "b": [Foretelling(9, 0.1, 0.0, 0.2)]})
    assert [(label, name) for label, name, _ in told.worst(found)] == [
        ("trial 9", "b"), ("trial 22", "a"), ("trial 21", "a"), ("trial 20", "a"), ("trial 23", "a"),
    ]  # fmt: skip
    assert told.worst_rows(found)[:2] == [
        ("trial 9", ("b", "0.100 ± 0.000", "0.200", "+0.100", "∞")),
        ("trial 22", ("a", "0.600 ± 0.020", "0.520", "−0.080", "8.0")),
    ]


def test_a_ridge_has_a_column_only_where_there_is_one() -> None:
    without, with_one = (Surrogates({"a": facts(ridge=ridge)}) for ridge in (0.0, 0.1))
    assert "ridge" not in told.columns(without)
    assert told.columns(with_one)[3] == "ridge"
    assert told.rows(with_one) == [
        ("a", ("identity", "40", "15", "0.1", "0.970", "0.900 ± 0.020", "0.031")),
    ]
    for found in (without, with_one):
        assert len(told.rows(found)[0][1]) == len(told.columns(found))


def test_the_report_says_where_a_quadratic_does_not_fit() -> None:
    page = render_report(fitted(poor=True)).split("<script")[0]
    assert "a quadratic does not describe it" in re.sub(r"\s+", " ", render_report(fitted(poor=True)))
    assert 'id="front"' in page
    assert "a quadratic does not describe it" not in render_report(fitted())


def test_the_section_has_a_figure_for_each_objective() -> None:
    text = render_report(fitted(3))
    assert 'id="surrogates"' in text
    assert all(f'id="figure-surrogates-{index}"' in text for index in range(3))
    assert 'id="surrogates"' not in render_report(example_summary())


def test_before_anything_is_foretold_there_is_the_table_alone() -> None:
    plain = fitted()
    assert plain.surrogates is not None
    text = render_report(replace(plain, surrogates=replace(plain.surrogates, foretold={})))
    assert "No trial was foretold" in text
    assert "figure-surrogates" not in text.split("<script>")[0]


def test_fits_without_the_last_trials_are_flagged() -> None:
    found = Surrogates({"a": facts()})
    assert told.outdated(found, 40) == ""
    assert told.outdated(found, 48).startswith("fitted to the first 40 of 48 trials")


@pytest.mark.parametrize("objectives", [2, 3])
def test_the_predicted_front_is_drawn_beside_the_evaluated_one(objectives: int) -> None:
    searched, confirmed = front_figures(fitted(objectives))
    traces = {trace.name: trace for trace in searched.data}
    assert tuple(traces["predicted front"].x) == (0.71, 0.72, 0.73)
    assert "front" in traces
    assert confirmed is not None
    assert "predicted front" not in [trace.name for trace in confirmed.data]
    if objectives > 2:
        buttons = json.loads(searched.to_json())["layout"]["updatemenus"][0]["buttons"]
        place = list(traces).index("predicted front")
        assert all(button["args"][0]["x"][place] == [0.71, 0.72, 0.73] for button in buttons)
        assert "predicted front" not in [trace.name for trace in profile_figure(fitted(objectives)).data]
