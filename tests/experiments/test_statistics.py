"""Intervals and paired tests against scipy and against simulation."""

import numpy as np
import pytest
import scipy.stats

from evomerge.experiments import statistics as stats


def test_wilson_interval_equals_scipys() -> None:
    responses = np.array([1.0] * 17 + [0.0] * 8)
    expected = scipy.stats.binomtest(17, 25).proportion_ci(method="wilson")
    estimate = stats.mean_of(responses)
    assert (estimate.value, estimate.items) == (17 / 25, 25)
    assert (estimate.low, estimate.high) == pytest.approx((expected.low, expected.high), abs=1e-9)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_wilson_interval_at_the_ends_has_a_width_and_stays_inside(value: float) -> None:
    estimate = stats.mean_of(np.full(20, value))
    assert 0.0 <= estimate.low < estimate.high <= 1.0
    assert estimate.low <= value <= estimate.high


def test_interval_of_graded_responses_is_normal() -> None:
    responses = np.array([0.2, 0.5, 0.9, 0.4, 0.6])
    half = stats.Z95 * scipy.stats.sem(responses)
    estimate = stats.mean_of(responses)
    assert (estimate.low, estimate.high) == pytest.approx((responses.mean() - half, responses.mean() + half))


def test_mean_over_tasks_weighs_tasks_not_items() -> None:
    items = {"long": np.zeros(1000), "short": np.ones(10)}
    assert stats.weighted_mean_of(items, {"long": 1.0, "short": 1.0}).value == 0.5
    assert stats.weighted_mean_of(items, {"long": 3.0, "short": 1.0}).value == 0.25


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        items = {
            "a": (generator.random(80) < 0.6).astype(float),
            "b": (generator.random(120) < 0.3).astype(float),
        }
        estimate = stats.weighted_mean_of(items, {"a": 1.0, "b": 1.0})
        hits += estimate.low <= 0.45 <= estimate.high
    assert 0.92 <= hits / 400 <= 0.98


def test_paired_p_value_agrees_with_scipys_permutation_test() -> None:
    generator = np.random.default_rng(1)
    a, b = generator.random(40), generator.random(40) - 0.1
    expected = scipy.stats.permutation_test(
        (a, b), lambda x, y: np.mean(x - y), permutation_type="samples", n_resamples=20_000, rng=generator
    ).pvalue
    assert stats.paired_p_value({"t": a}, {"t": b}, {"t": 1.0}) == pytest.approx(expected, abs=0.02)


def test_equal_models_are_not_told_apart() -> None:
    same = {"t": np.array([1.0, 0.0, 1.0])}
    assert stats.paired_p_value(same, same, {"t": 1.0}) == 1.0
    assert stats.paired_difference(same, same, {"t": 1.0}).value == 0.0


def test_p_value_is_corrected_for_the_number_of_candidates() -> None:
    a, b = {"t": np.ones(12)}, {"t": np.zeros(12)}
    single = stats.paired_p_value(a, b, {"t": 1.0})
    assert single < 0.005
    assert stats.paired_p_value(a, b, {"t": 1.0}, comparisons=7) == pytest.approx(7 * single)
    assert stats.paired_p_value(a, b, {"t": 1.0}, comparisons=10_000) == 1.0


def test_objectives_of_one_task_share_its_items() -> None:
    """Two metrics of the same items are no more evidence than one."""
    gains = {"acc": np.array([1.0, 0.0, 1.0, 1.0]), "acc_norm": np.array([1.0, 0.0, 1.0, 1.0])}
    joined, weights = stats.by_task(gains, {"acc": 1.0, "acc_norm": 3.0}, {"acc": "t", "acc_norm": "t"})
    assert weights == {"t": 4.0}
    np.testing.assert_array_equal(joined["t"], gains["acc"])
    alone = stats.weighted_mean_of({"t": gains["acc"]}, {"t": 1.0})
    assert stats.weighted_mean_of(joined, weights) == alone


def test_one_item_has_no_interval() -> None:
    assert stats.mean_of(np.array([1.0])).low == -np.inf
    assert stats.weighted_mean_of({"t": np.array([0.5])}, {"t": 1.0}).high == np.inf


def test_p_value_does_not_depend_on_global_random_state() -> None:
    a, b = {"t": np.arange(30) % 2 * 1.0}, {"t": np.arange(30) % 3 / 2}
    np.random.seed(3)
    first = stats.paired_p_value(a, b, {"t": 1.0})
    np.random.seed(4)
    assert stats.paired_p_value(a, b, {"t": 1.0}) == first
