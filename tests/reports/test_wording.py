"""Numbers and verdicts in words: right to the digit, and never stronger than the interval."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.reports import wording
from evomerge.reports.summary import Comparison, Interval
from evomerge.testing.summaries import example_summary


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.5, "0.500"),
        (-0.25, "−0.250"),
        (0.0, "0.000"),
        (0.0004, "4.0e−04"),
        (12.34, "12.3"),
        (1234.5, "1,234.5"),
        (float("nan"), "–"),
        (float("-inf"), "−∞"),
    ],
)
def test_a_number_is_shown_in_the_width_that_suits_it(value: float, text: str) -> None:
    assert wording.number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (4.25, "4.2s"), (59.6, "1m00s"), (100, "1m40s"), (7500, "2h05m")]
)
def test_a_duration_is_shown_by_its_two_largest_units(seconds: float, text: str) -> None:
    assert wording.duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0%"), (0.0004, "<0.1%"), (0.045, "4.5%"), (0.5, "50%"), (1.0, "100%")]
)
def test_a_small_share_is_never_shown_as_zero(value: float, text: str) -> None:
    assert wording.share(value) == text


@pytest.mark.parametrize(("value", "text"), [(0.0, "p < 0.001"), (0.0342, "p = 0.034"), (0.41, "p = 0.41")])
def test_a_p_value_is_never_shown_as_zero(value: float, text: str) -> None:
    assert wording.p_value(value) == text


def test_an_interval_below_zero_is_not_written_with_two_dashes_in_a_row() -> None:
    assert wording.ends(Interval(-1.38, -1.39, -1.36)) == "−1.39 to −1.36"
    assert wording.ends(Interval(0.7, 0.68, 0.74)) == "0.68–0.74"


@given(low=st.floats(-1, 1), width=st.floats(0, 1), p=st.floats(0, 1))
def test_the_winner_beats_a_rival_only_with_interval_and_p_value_both(low: float, width: float, p: float) -> None:
    summary = example_summary()
    comparison = Comparison("math", Interval(low + width / 2, low, low + width), p)
    verdict = wording.verdict(summary, comparison)
    assert (" beats " in verdict) == (low > 0 and p < 0.05)
    assert (" is worse than " in verdict) == (low + width < 0)


def test_the_headline_names_whom_the_winner_beats_and_whom_it_does_not() -> None:
    winner = example_summary(gain=0.05)
    assert wording.headline(winner) == f"Trial {winner.pick} beats the best parent (math) and the uniform merge."
    mixed = wording.headline(example_summary(gain=0.01))
    assert mixed.endswith("beats the best parent (math), but does not beat the uniform merge.")
    beaten = replace(winner, comparisons=[Comparison("uniform", Interval(-0.1, -0.12, -0.08), 1.0)])
    assert wording.headline(beaten).endswith("does not beat the uniform merge.")
    assert "is worse than the uniform merge" in wording.verdict(beaten, beaten.comparisons[0])


def test_a_significant_interval_without_a_significant_p_value_is_explained() -> None:
    summary = example_summary()
    verdict = wording.verdict(summary, Comparison("uniform", Interval(0.02, 0.001, 0.04), 0.2))
    assert "does not beat the uniform merge" in verdict
    assert "corrected for the choice" in verdict


@pytest.mark.parametrize(
    ("trials", "failed", "text"),
    [
        (0, (), "No trial has finished yet."),
        (2, (0, 1), "All 2 trials so far failed."),
        (5, (), "Nothing is confirmed yet: the scores below are on the items that the search optimises."),
    ],
)
def test_the_headline_of_an_unfinished_run_claims_nothing(trials: int, failed: tuple[int, ...], text: str) -> None:
    assert wording.headline(example_summary(trials=trials, failed=failed, confirmed=False)) == text
