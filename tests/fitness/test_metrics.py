"""Metric keys are resolved to one, or refused with the list (T10, users' need 9)."""

from __future__ import annotations

import math

import pytest

from evomerge.errors import FitnessError, Problem
from evomerge.fitness.metrics import Metric, resolve_metric

METRICS = {
    f"{name},{filter_name}": Metric(name, filter_name, "maximize", "mean", math.fsum)
    for name in ("exact_match", "f1")
    for filter_name in ("strict-match", "flexible-extract")
}


def resolve(metric: str | None, filter_name: str | None = None) -> Metric | Problem:
    """Resolve among ``METRICS``."""
    return resolve_metric("gsm8k", METRICS, metric, filter_name)


@pytest.mark.parametrize(
    ("metric", "filter_name"),
    [
        ("exact_match,strict-match", None),
        ("exact_match", "strict-match"),
        ("exact_match,strict-match", "strict-match"),
    ],
)
def test_metric_and_filter_together_name_one_key(metric: str, filter_name: str | None) -> None:
    found = resolve(metric, filter_name)
    assert isinstance(found, Metric)
    assert found.key == "exact_match,strict-match"


def test_the_only_metric_needs_no_name() -> None:
    only = {"acc,none": Metric("acc", "none", "maximize", "mean", math.fsum)}
    assert resolve_metric("t", only, None, None) == only["acc,none"]
    assert resolve_metric("t", only, "acc", None) == only["acc,none"]


@pytest.mark.parametrize(
    ("metric", "filter_name", "what", "hint"),
    [
        ("exact_match", None, "has several metrics named 'exact_match'", "'exact_match,strict-match'"),
        (None, None, "has several metrics", "'f1,flexible-extract'"),
        ("exact_mach", None, "has no metric 'exact_mach'", "did you mean 'exact_match'"),
        ("exact_match", "strict", "has no filter 'strict'", "'exact_match,strict-match'"),
        ("exact_match,none", None, "has no filter 'none'", "'exact_match,strict-match'"),
        ("f1,strict-match", "flexible-extract", "names the filter 'strict-match'", "keep one of them"),
    ],
)
def test_a_key_that_is_not_one_is_refused_with_the_valid_ones(
    metric: str | None, filter_name: str | None, what: str, hint: str
) -> None:
    problem = resolve(metric, filter_name)
    assert isinstance(problem, Problem)
    assert what in problem.what
    assert hint in problem.suggestion


def test_a_mean_leaves_out_items_without_a_value() -> None:
    assert METRICS["f1,strict-match"].score([1.0, None, 0.0, 0.0]) == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([None, None], "none of the 2 items has a value"),
        ([[1.0, 2.0]], "a mean needs numbers"),
        ([float("inf")], "is inf, not a number"),
    ],
)
def test_values_without_a_score_are_an_error(values: list[object], message: str) -> None:
    with pytest.raises(FitnessError, match=message):
        METRICS["f1,strict-match"].score(values)  # type: ignore[arg-type]
