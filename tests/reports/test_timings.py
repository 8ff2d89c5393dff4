"""Where the time went: sums, shares, and one sentence that is true of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from evomerge.reports.html import render_report
from evomerge.reports.summary import TrialRow
from evomerge.reports.timings import driver_line, limit, lines, parts, timings, worker_totals
from evomerge.testing.summaries import example_summary

TIMES = {"queue_seconds": 3.0, "driver_seconds": 0.1, "wait_seconds": 4.9, "workers": 2, "worker": "a:1"}


def trial(number: int = 0, **changes: Any) -> TrialRow:
    row = TrialRow(number, {"w": 0.5}, {"acc": 0.5}, seconds=10.0, merge_seconds=2.0, forward_seconds=7.0)
    return replace(row, **{**TIMES, **changes})


def test_the_sums_are_those_of_the_trials() -> None:
    found = timings([trial(number) for number in range(8)])
    assert found is not None
    assert (found.trials, found.evaluated) == (8, 8)
    assert (found.forward, found.merge, found.other) == (56.0, 16.0, 8.0)
    assert found.wall == pytest.approx(40.0)
    assert found.available == pytest.approx(80.0)
    assert found.busy == 80.0
    assert found.idle == pytest.approx(0.0)
    assert found.queue == 24.0


def test_shares_add_up_to_the_whole_and_idle_is_what_is_left() -> None:
    found = timings([trial(number, workers=4) for number in range(8)])
    assert found is not None
    shares = {part.name: part.part for part in parts(found)}
    assert sum(shares.values()) == pytest.approx(1.0)
    assert shares["idle"] == pytest.approx(0.5)
    assert shares["merging"] == pytest.approx(0.1)


def test_a_recipe_that_was_known_took_no_workers_time_again() -> None:
    one, both = timings([trial(0)]), timings([trial(0), trial(1, cached=True)])
    assert one is not None
    assert both is not None
    assert (both.busy, both.queue, both.evaluated) == (one.busy, one.queue, 1)
    assert both.wall == 2 * one.wall
    assert [total.trials for total in worker_totals([trial(0), trial(1, cached=True)])] == [1]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "Forward passes limit this run"),
        ({"merge_seconds": 8.0, "forward_seconds": 1.0}, "Merging limits this run"),
        ({"merge_seconds": 1.0, "forward_seconds": 1.0}, "Evaluation outside forward passes limits this run"),
        ({"workers": 8}, "too few candidates were open"),
        ({"workers": 8, "driver_seconds": 4.9, "wait_seconds": 0.1}, "The driver limits this run"),
        ({"driver_seconds": 4.9, "wait_seconds": 0.1}, "Forward passes limit this run"),
        ({"driver_seconds": 0.0, "wait_seconds": 0.0, "workers": 0}, "is not known"),
    ],
)
def test_one_sentence_says_what_limits_the_run(changes: dict[str, float], said: str) -> None:
    found = timings([trial(number, **changes) for number in range(5)])
    assert found is not None
    assert said in limit(found)


def test_the_driver_is_told_apart_from_waiting() -> None:
    found = timings([trial(number) for number in range(10)])
    assert found is not None
    text = driver_line(found)
    assert text.startswith("The search took 50s, 2.0% of it the driver's own work (100.0 ms a trial")
    assert "an evaluation waited 3.0s in the queue" in text or "an evaluation waited 3s in the queue" in text


def test_overlapping_work_leaves_nobody_idle_and_nothing_negative() -> None:
    found = timings([trial(number, workers=1) for number in range(4)])
    assert found is not None
    assert found.idle == 0.0
    assert all(part.part >= 0 for part in parts(found))


def test_older_journals_still_say_what_they_know() -> None:
    summary = example_summary(trials=10)
    found = timings(summary.trials)
    assert found is not None
    assert driver_line(found) == ""
    assert [part.name for part in parts(found)] == ["forward passes", "merging", "other"]
    assert "is not known" in render_report(summary)
    assert timings([]) is None
    assert lines([]) == ["nothing was timed yet"]


def test_the_terminal_and_the_report_say_the_same() -> None:
    summary = example_summary(trials=8)
    times = {**TIMES, "seconds": 10.0, "merge_seconds": 2.0, "forward_seconds": 7.0}
    summary = replace(summary, trials=[replace(row, **times) for row in summary.trials])
    text = render_report(summary)
    said = lines(summary.trials)
    assert said[0] == "workers' time: forward passes 70% (56s), merging 20% (16s), other 10% (8s), idle 0% (0s)"
    assert said[-1] == "a:1: 8 trials, 0 failed, busy 1m20s"
    assert said[2] in text
    assert said[1].replace("'", "&#39;") in text
