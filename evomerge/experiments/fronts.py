"""Fronts: the non-dominated trials, and their hypervolume."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from evomerge import fronts as arrays
from evomerge.searchers import ObjectiveSpec

Scores = Mapping[str, float]


def as_gains(scores: Sequence[Scores], objectives: Sequence[ObjectiveSpec]) -> np.ndarray:
    """Return an array (rows, objectives) in which larger is better; float64."""
    signs = np.array([1.0 if o.direction == "maximize" else -1.0 for o in objectives])
    rows = [[row[o.name] for o in objectives] for row in scores]
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(objectives)) * signs


def front(scores: Sequence[Scores], objectives: Sequence[ObjectiveSpec]) -> list[int]:
    """Return the indices of the rows that no other row dominates, equal rows included, in order."""
    return [int(i) for i in np.flatnonzero(arrays.nondominated(as_gains(scores, objectives)))]


def reference_point(scores: Sequence[Scores], objectives: Sequence[ObjectiveSpec]) -> dict[str, float]:
    """Return the worst value of each objective among ``scores`` (the parents, the base and the uniform merge)."""
    gains = as_gains(scores, objectives).min(axis=0)
    signs = as_gains([{o.name: 1.0 for o in objectives}], objectives)[0]
    return {o.name: float(g * s) for o, g, s in zip(objectives, gains, signs, strict=True)}


def hypervolume(scores: Sequence[Scores], objectives: Sequence[ObjectiveSpec], reference: Scores) -> float:
    """Return the volume that ``scores`` dominate beyond ``reference``, in the product of the objectives' units."""
    return arrays.hypervolume(as_gains(scores, objectives), as_gains([reference], objectives)[0])


def weighted_mean(scores: Scores, objectives: Sequence[ObjectiveSpec]) -> float:
    """Return the weighted mean of the objectives, larger better (minimised ones count negatively)."""
    weights = np.array([o.weight for o in objectives])
    if weights.sum() == 0:
        weights = np.ones_like(weights)
    return float(as_gains([scores], objectives)[0] @ weights / weights.sum())
