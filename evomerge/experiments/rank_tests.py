"""Tests of whether runs of one searcher end better than runs of another: by ranks, for few runs and with ties.

p-values are exact where that takes at most ``ARRANGEMENTS`` steps, ties included (scores on a few hundred items often
tie); beyond that, and without ties, they are scipy's. Recommended for stochastic searches by Arcuri and Briand (2014),
"A hitchhiker's guide to statistical tests for assessing randomized algorithms in software engineering".
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

ARRANGEMENTS = 20_000


def mann_whitney(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the two-sided p-value of the Mann-Whitney U test (Mann and Whitney 1947).

    Args:
        first: values of independent runs, at least one.
        second: likewise.
    """
    ranks = stats.rankdata([*first, *second])
    tied = len(np.unique(ranks)) < len(ranks)
    if tied and math.comb(len(ranks), len(first)) <= ARRANGEMENTS:
        return _exact(ranks[: len(first)], ranks[len(first) :], "independent")
    return float(stats.mannwhitneyu(first, second).pvalue)


def wilcoxon(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the two-sided p-value of the signed-rank test of paired values (Wilcoxon 1945); equal pairs are left out.

    Args:
        first: values of runs, at least one.
        second: those of their partners, in the same order.
    """
    differences = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    differences = differences[differences != 0]
    if not len(differences):
        return 1.0
    ranks = stats.rankdata(np.abs(differences)) * np.sign(differences)
    if 2 ** len(ranks) <= ARRANGEMENTS:
        return _exact(ranks, -ranks, "samples")
    return float(stats.wilcoxon(differences).pvalue)


def smallest_mann_whitney(first: int, second: int) -> float:
    """Return the smallest p-value that so many runs can give: all of one better than all of the other."""
    return min(1.0, 2 / math.comb(first + second, first))


def smallest_wilcoxon(pairs: int) -> float:
    """Return the smallest p-value that so many pairs can give: the same one better in all."""
    return min(1.0, 2 / 2**pairs)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for being several (Holm 1979), in the same order."""
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        highest = max(highest, (len(p_values) - rank) * p_values[index])
        corrected[index] = min(1.0, highest)
    return corrected


def larger_by_chance(first: Sequence[float], second: Sequence[float]) -> float:
    """Return A12 (Vargha and Delaney 2000): how often a value of ``first`` is larger than one of ``second``.

    Ties count half, so 0.5 says that neither tends to be larger.
    """
    one, other = np.asarray(first)[:, None], np.asarray(second)[None, :]
    return float(((one > other) + 0.5 * (one == other)).mean())


def _exact(first: np.ndarray, second: np.ndarray, kind: str) -> float:
    """Return the p-value of the sum of ``first`` over all arrangements of ``kind``."""
    found = stats.permutation_test(
        (first, second),
        lambda x, y, axis: x.sum(axis=axis),
        permutation_type=kind,
        vectorized=True,
        n_resamples=ARRANGEMENTS,  # at least as many as there are: all are gone through
    )
    return float(min(1.0, found.pvalue))
