"""Intervals and paired tests over items.

A score is the mean over objectives of means over items. Items are the random units and tasks are fixed, so the
variance of the mean over T objectives is Σ_t w_t² s_t² / n_t (a stratified mean; Cochran 1977, *Sampling Techniques*,
eq. 5.6). Intervals are normal, two-sided, 95%. The paired test flips the signs of the items' differences at random
(Fisher's randomisation test): exact in distribution whatever the responses' scale.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Z95 = 1.959963984540054
FLIPS = 10_000

Items = Mapping[str, np.ndarray]  # objective name → responses (items,), float64, larger better


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95% interval and the number of items behind it."""

    value: float
    low: float
    high: float
    items: int


def by_task(
    gains: Items, weights: Mapping[str, float], tasks: Mapping[str, str]
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Return gains and weights by task instead of by objective: objectives of one task share its items.

    Args:
        gains: objective → responses (items,).
        weights: objective → weight.
        tasks: objective → its task.
    """
    joined: dict[str, np.ndarray] = {}
    total: dict[str, float] = {}
    for name, responses in gains.items():
        task = tasks[name]
        joined[task] = joined.get(task, 0.0) + weights[name] * responses
        total[task] = total.get(task, 0.0) + weights[name]
    return {task: joined[task] / total[task] for task in joined}, total


def mean_of(responses: np.ndarray) -> Estimate:
    """Return the mean of responses (items,) with its interval; a proportion's interval stays inside [0, 1].

    For 0/1 responses the interval is Wilson's (1927), which is sound at 0 and 1 too.
    """
    n, mean = len(responses), float(np.mean(responses))
    if n > 1 and np.isin(responses, (0.0, 1.0)).all():
        centre = (mean + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
        half = Z95 / (1 + Z95**2 / n) * np.sqrt(mean * (1 - mean) / n + Z95**2 / (4 * n**2))
        return Estimate(mean, float(min(centre - half, mean)), float(max(centre + half, mean)), n)
    half = Z95 * float(np.std(responses, ddof=1)) / np.sqrt(n) if n > 1 else np.inf
    return Estimate(mean, float(mean - half), float(mean + half), n)


def weighted_mean_of(items: Items, weights: Mapping[str, float]) -> Estimate:
    """Return the weighted mean over objectives of the means over items, with its interval."""
    shares = _shares(items, weights)
    value = sum(shares[name] * float(responses.mean()) for name, responses in items.items())
    variance = sum(
        shares[name] ** 2 * (float(responses.var(ddof=1)) / len(responses) if len(responses) > 1 else np.inf)
        for name, responses in items.items()
    )
    half = Z95 * float(np.sqrt(variance))
    return Estimate(value, value - half, value + half, sum(len(r) for r in items.values()))


def paired_difference(a: Items, b: Items, weights: Mapping[str, float]) -> Estimate:
    """Return weighted mean of ``a`` − that of ``b`` with its interval; row i of both is the same item."""
    return weighted_mean_of({name: a[name] - b[name] for name in a}, weights)


def paired_p_value(a: Items, b: Items, weights: Mapping[str, float], *, comparisons: int = 1, seed: int = 0) -> float:
    """Return the two-sided p-value of the sign-flip test that ``a`` and ``b`` have the same weighted mean.

    Args:
        comparisons: how many candidates ``a`` was chosen from by its score on these same items; the p-value is
            multiplied by it (Bonferroni), capped at 1.
    """
    generator = np.random.default_rng(seed)
    shares = _shares(a, weights)
    observed, flipped = 0.0, np.zeros(FLIPS)
    for name in a:
        differences = (a[name] - b[name]) * (shares[name] / len(a[name]))
        differences = differences[differences != 0]
        observed += float(differences.sum())
        for start in range(0, FLIPS, 500):
            signs = generator.integers(0, 2, size=(500, len(differences)), dtype=np.int8) * 2 - 1
            flipped[start : start + 500] += signs @ differences
    extreme = int((np.abs(flipped) >= abs(observed) - 1e-12).sum())
    return min(1.0, comparisons * (extreme + 1) / (FLIPS + 1))


def _shares(items: Items, weights: Mapping[str, float]) -> dict[str, float]:
    total = sum(weights[name] for name in items)
    if total == 0:
        return {name: 1 / len(items) for name in items}
    return {name: weights[name] / total for name in items}


def stack(rows: Sequence[float]) -> np.ndarray:
    """Return responses as an array (items,), float64."""
    return np.asarray(rows, dtype=np.float64)
