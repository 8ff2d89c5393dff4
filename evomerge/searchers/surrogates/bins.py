"""Where surrogates miss: MAP's binned acquisition (Bayesian MAP, Li et al. 2025, algorithm 2)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evomerge.searchers.surrogates.links import Array
from evomerge.searchers.surrogates.quadratic import Quadratic

TEMPERATURE, BALANCE = 0.07, 0.5
_RESAMPLED, _SHARE = 30, 0.8


def uncertain_points(points: Array, values: Array, surrogates: Sequence[Quadratic], count: int, seed: int) -> Array:
    """Return points (count, d) of the unit box in directions where surrogates miss the values.

    The angles of the points, as seen from the box's origin, are binned. A bin scores the mean of its squared misses and
    half their standard deviation when a fifth is left out at random, each objective's misses being scaled to 1. Bins
    are drawn by softmax of the scores, points evenly in the angles of a bin and along the ray through it.

    Args:
        points: evaluated, float64 (evaluations, d).
        values: the objectives there, float64 (evaluations, objectives).
        surrogates: fitted to them.
        count: of points.
        seed: of the draws.
    """
    draw = np.random.default_rng(seed)
    dimensions = points.shape[1]
    if dimensions == 1:
        return draw.random((count, 1))
    bins = 4 if dimensions < 4 else 2
    misses = np.square(np.stack([surrogate(points) for surrogate in surrogates], axis=1) - values)
    losses = (misses / np.maximum(misses.mean(0), 1e-300)).mean(1)
    cells = np.minimum((_angles(points) / (np.pi / 2) * bins).astype(int), bins - 1)
    held = np.unique(cells, axis=0)
    scores = np.array([_score(losses[(cells == cell).all(1)], draw) for cell in held])
    shares = np.exp((scores - scores.max()) / (TEMPERATURE * max(float(np.ptp(scores)), 1e-12)))
    chosen = held[draw.choice(len(held), size=count, p=shares / shares.sum())]
    rays = _directions((chosen + draw.random(chosen.shape)) / bins * np.pi / 2)
    return np.asarray(rays * (draw.random(count) / rays.max(1))[:, None])


def _score(losses: Array, draw: np.random.Generator) -> float:
    kept = max(1, round(_SHARE * len(losses)))
    means = [draw.choice(losses, kept, replace=False).mean() for _ in range(_RESAMPLED)]
    return float(losses.mean() + BALANCE * np.std(means))


def _angles(points: Array) -> Array:
    """Return the hyperspherical angles (m, d − 1) in [0, π/2] of points (m, d) that are not negative."""
    rest = np.sqrt(np.cumsum(np.square(points)[:, ::-1], axis=1)[:, ::-1])
    return np.arctan2(rest[:, 1:], points[:, :-1])


def _directions(angles: Array) -> Array:
    """Return the unit vectors (m, d) of angles (m, d − 1)."""
    sines = np.cumprod(np.concatenate([np.ones((len(angles), 1)), np.sin(angles)], axis=1), axis=1)
    cosines = np.concatenate([np.cos(angles), np.ones((len(angles), 1))], axis=1)
    return np.asarray(sines * cosines)
