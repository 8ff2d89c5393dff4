"""Rank tests against scipy, and against going through all arrangements where values tie."""

from itertools import combinations, product

import numpy as np
import pytest
from scipy import stats

from evomerge.experiments import rank_tests


def test_mann_whitney_of_a_written_table() -> None:
    first, second = [0.61, 0.64, 0.70, 0.71, 0.74], [0.58, 0.60, 0.63, 0.66, 0.69]
    # Of first, 1, 2 and 3 more beat … : U = 2 + 3 + 5 + 5 + 5 = 20 of 25; P(U >= 20) = 19 / 252 of all arrangements.
    assert rank_tests.mann_whitney(first, second) == pytest.approx(2 * 19 / 252)
    assert stats.mannwhitneyu(first, second, method="exact").pvalue == pytest.approx(2 * 19 / 252)


def test_mann_whitney_with_ties_goes_through_all_arrangements() -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        first, second = generator.integers(0, 4, 4).tolist(), generator.integers(0, 4, 5).tolist()
        ranks = stats.rankdata([*first, *second])
        sums = np.array([sum(chosen) for chosen in combinations(ranks, 4)])
        found, slack = ranks[:4].sum(), 1e-9
        tails = (sums <= found + slack).mean(), (sums >= found - slack).mean()
        assert rank_tests.mann_whitney(first, second) == pytest.approx(min(1, 2 * min(tails)))


def test_mann_whitney_of_equal_values_says_nothing() -> None:
    assert rank_tests.mann_whitney([0.5] * 3, [0.5] * 3) == 1.0


def test_wilcoxon_of_a_written_table() -> None:
    first, second = [0.9, 0.8, 0.75, 0.7, 0.64], [0.5, 0.5, 0.5, 0.5, 0.6]
    assert rank_tests.wilcoxon(first, second) == pytest.approx(2 / 32)
    assert rank_tests.wilcoxon([*first, 0.1], [*second, 0.15]) == pytest.approx(
        stats.wilcoxon([*first, 0.1], [*second, 0.15], method="exact").pvalue
    )


def test_wilcoxon_with_ties_goes_through_all_signs() -> None:
    differences = np.array([1.0, 1.0, 2.0, -1.0, 3.0, 2.0])
    ranks = stats.rankdata(np.abs(differences))
    sums = np.array([np.dot(signs, ranks) for signs in product((-1, 1), repeat=6)])
    expected = 2 * (sums >= np.dot(np.sign(differences), ranks)).mean()
    assert rank_tests.wilcoxon([*differences, 7.0], [0.0] * 6 + [7.0]) == pytest.approx(expected)  # equal: left out
    assert rank_tests.wilcoxon([1.0, 2.0], [1.0, 2.0]) == 1.0


def test_large_samples_are_scipys() -> None:
    generator = np.random.default_rng(1)
    first, second = generator.normal(0.5, 1, 30).round(1), generator.normal(0, 1, 30).round(1)
    assert rank_tests.mann_whitney(first, second) == stats.mannwhitneyu(first, second).pvalue
    different = first[first != second], second[first != second]
    assert rank_tests.wilcoxon(first, second) == stats.wilcoxon(*different).pvalue


def test_the_smallest_p_values_are_those_of_samples_apart() -> None:
    assert rank_tests.smallest_mann_whitney(3, 4) == rank_tests.mann_whitney([1, 2, 3], [4, 5, 6, 7])
    assert rank_tests.smallest_wilcoxon(4) == rank_tests.wilcoxon([1, 2, 3, 4], [0, 0, 0, 0])


def test_holm_by_hand() -> None:
    assert rank_tests.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert rank_tests.holm([0.6, 0.001, 0.5]) == pytest.approx([1.0, 0.003, 1.0])
    assert rank_tests.holm([]) == []


def test_larger_by_chance_counts_ties_half() -> None:
    assert rank_tests.larger_by_chance([3, 2], [1, 2, 4]) == pytest.approx((1 + 1 + 1 + 0.5) / 6)
    assert rank_tests.larger_by_chance([2, 3], [1]) == 1.0
