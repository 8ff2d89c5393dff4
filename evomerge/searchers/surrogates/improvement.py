"""How much hypervolume points may add to a front: predicted, or expected under the surrogates' uncertainty.

The expected hypervolume improvement (Emmerich 2005; Emmerich, Yang, Deutz, Wang and Fonseca 2016) of independent
predictions is the integral, over what the front does not dominate, of the probability that a point dominates the place:
EHVI = ∫ Πₘ P(Yₘ ≥ zₘ) dz. Taken at quasi-random places, it costs one normal distribution function for each point, place
and objective, with any number of objectives; and for several points together it is ∫ 1 − Πₖ (1 − Pₖ(z)) dz.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr
from scipy.stats import qmc

from evomerge.fronts import nondominated
from evomerge.searchers.surrogates.links import Array

PLACES = 2**12
_MARGIN = 0.1  # beyond the range of what is reached and hoped for, as a share of it
_EXACT = 1e-9  # standard deviation of a prediction that is taken at its word, as a share of all places' range


def best_points(front: Array, means: Array, errors: Array, count: int, seed: int) -> list[int]:
    """Return the rows of up to ``count`` points that add the most hypervolume together, found one after the other.

    Fewer are returned when further ones add nothing. Hypervolumes are over a reference point a tenth of the range below
    what is reached and hoped for (means plus errors) and not dominated.

    Args:
        front: gains that are reached, float64 (any, objectives), larger better.
        means: predicted gains of the points, float64 (points, objectives).
        errors: their standard deviations, of the same shape; 0 where predictions are taken at their word.
        count: of points.
        seed: of the places.
    """
    hoped = np.concatenate([front, means + errors])
    good = np.concatenate([front[nondominated(front)], hoped[nondominated(hoped)]])
    low, high = good.min(0), good.max(0)
    margin = np.where(high > low, _MARGIN * (high - low), 1.0)
    places = _places(low - margin, high + margin, seed)
    chances = _chances(means, errors, places)
    open_ = 1 - _chances(front, np.zeros_like(front), places).max(0, initial=0.0)
    chosen: list[int] = []
    for _ in range(count):
        added = chances @ open_
        added[chosen] = 0  # a point evaluated twice gives the same value
        row = int(added.argmax())
        if added[row] <= 1e-9 * len(places):
            break
        chosen.append(row)
        open_ *= 1 - chances[row]
    return chosen


def points_to_try(front: Array, means: Array, errors: Array, count: int, seed: int) -> list[int]:
    """Return the rows of up to ``count`` points: the `best_points`, then non-dominated ones far from what is known.

    The arguments are those of `best_points`.
    """
    if not len(means):
        return []
    rows = best_points(front, means, errors, count, seed)
    others = np.setdiff1d(np.flatnonzero(nondominated(means)), rows)
    also = spread_points(np.concatenate([front, means[rows]]), means[others], count - len(rows))
    return rows + [int(row) for row in others[also]]


def spread_points(known: Array, means: Array, count: int) -> list[int]:
    """Return the rows of ``count`` points, each as far as can be from the known ones and from those before it.

    Args:
        known: gains, float64 (any, objectives).
        means: of the points, float64 (points, objectives).
        count: of points.
    """
    scale = np.maximum(np.ptp(np.concatenate([known, means]), axis=0), 1e-12)
    near = np.linalg.norm((means[:, None] - known) / scale, axis=2).min(1, initial=math.inf)
    chosen: list[int] = []
    for _ in range(min(count, len(means))):
        row = int(near.argmax())
        chosen.append(row)
        near = np.minimum(near, np.linalg.norm((means - means[row]) / scale, axis=1))
        near[row] = -1.0
    return chosen


def _places(low: Array, high: Array, seed: int) -> Array:
    return np.asarray(low + (high - low) * qmc.Sobol(len(low), seed=seed).random(PLACES))


def _chances(means: Array, errors: Array, places: Array) -> NDArray[np.float64]:
    """Return the probability that each point dominates each place, (points, places)."""
    chances = np.ones((len(means), len(places)))
    for mean, error, place in zip(means.T, errors.T, places.T, strict=True):
        chances *= ndtr((mean[:, None] - place) / np.maximum(error, _EXACT * np.ptp(place))[:, None])
    return chances
