"""Measures of a front beside its hypervolume: how near a known front it is, how evenly it is spread."""

from __future__ import annotations

from dataclasses import dataclass

import moocore
import numpy as np
from numpy.typing import ArrayLike
from scipy.spatial import cKDTree

from evomerge.errors import ConfigError, Problem
from evomerge.fronts.dominance import nondominated
from evomerge.fronts.gains import checked, widths


@dataclass(frozen=True)
class Quality:
    """How good a front is.

    Args:
        hypervolume: in the product of the objectives' units; the larger the better.
        size: rows on the front, equal ones included.
        spread: Δ*, the smaller the better; None where there are too few rows for it.
        igd_plus: the smaller the better; None without a known front, or without rows.
    """

    hypervolume: float
    size: int
    spread: float | None = None
    igd_plus: float | None = None

    def to_json(self) -> dict[str, float]:
        """Return the measures that there are, by name."""
        named = {"spread": self.spread, "igd_plus": self.igd_plus}
        known = {name: value for name, value in named.items() if value is not None}
        return {"hypervolume": self.hypervolume, "size": self.size, **known}


def igd_plus(gains: ArrayLike, known: ArrayLike) -> float:
    """Return the inverted generational distance IGD+ (Ishibuchi et al. 2015).

    The mean, over the rows of ``known``, of the distance to the nearest of ``gains``, in which only objectives where
    that one is worse count. 0 means that every known row is reached; the unit is the range of ``known`` in each
    objective, so objectives count alike whatever theirs are.

    Args:
        gains: (rows, objectives), larger is better; at least one row.
        known: (known rows, objectives), the front that could be reached; at least one row.

    Raises:
        ConfigError: a gain is NaN or infinite, there are no rows, or the shapes do not fit.
    """
    rows, goal = checked(gains), checked_known(known, np.shape(gains)[-1])
    _require_rows(rows, "gains")
    scale = widths(goal)
    return float(moocore.igd_plus(-rows / scale, ref=-goal / scale))


def spread(gains: ArrayLike, known: ArrayLike | None = None) -> float | None:
    """Return the generalised spread Δ* of the non-dominated rows (Zhou et al. 2006, "Combining model-based and …").

    With d(x) the Euclidean distance of a row to the nearest other one and d̄ their mean, and e₁ … eₘ the extremes,

        Δ* = (Σ d(eᵢ, rows) + Σ |d(x) − d̄|) / (Σ d(eᵢ, rows) + rows · d̄)

    0 means that distances are equal and the extremes reached. Equal rows count once. Objectives are scaled to the
    range of ``known``, else of the front itself. Extremes are the rows best in one objective (of equal ones, best in
    the sum of all): of ``known``, else of the front, which has its own by definition: then Δ* tells of evenness alone.

    Args:
        gains: (rows, objectives), larger is better.
        known: (known rows, objectives), the front that could be reached, if it is known.

    Returns:
        Δ*, from 0 to less than 2; None for too few different non-dominated rows to be uneven: three are needed, and
        with ``known`` two.

    Raises:
        ConfigError: a gain is NaN or infinite, or the shapes do not fit.
    """
    rows = checked(gains)
    goal = None if known is None else checked_known(known, rows.shape[1])
    rows = np.unique(rows[nondominated(rows)], axis=0)
    if len(rows) < fewest(known is not None):
        return None
    scale = widths(rows if goal is None else goal)
    distances, _ = nearest_others(rows / scale)
    ends = np.empty((0, rows.shape[1])) if goal is None else extremes(goal) / scale
    return delta_star(distances, np.array([nearest_to(end, (rows / scale).T)[0] for end in ends]))


def fewest(known: bool) -> int:
    """Return how many different rows Δ* needs: two have a single distance, which is even whatever it is."""
    return 2 if known else 3


def checked_known(known: ArrayLike, objectives: int) -> np.ndarray:
    """Return the non-dominated rows of a known front.

    Raises:
        ConfigError: it is empty or not finite, or has another number of objectives.
    """
    goal = checked(known)
    _require_rows(goal, "known front")
    if goal.shape[1] != objectives:
        raise ConfigError(Problem(f"it has {goal.shape[1]} objectives, the gains have {objectives}", "known front"))
    return goal[nondominated(goal)]


def extremes(front: np.ndarray) -> np.ndarray:
    """Return the row best in each objective, of equal ones that best in the sum of scaled gains."""
    sums = (front / widths(front)).sum(axis=1)
    return front[[np.lexsort((sums, column))[-1] for column in front.T]]


def nearest_others(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return each row's distance to the nearest other one, and which that is.

    Args:
        rows: (rows, objectives), at least two.
    """
    distances, found = cKDTree(rows).query(rows, k=2)
    itself = found[:, 1] == np.arange(len(rows))  # of rows at no distance, any may come first
    return distances[:, 1], np.where(itself, found[:, 0], found[:, 1])


def nearest_to(point: np.ndarray, columns: np.ndarray) -> tuple[float, int]:
    """Return the distance of a point to the nearest of columns (objectives, points), and which that is."""
    squares = np.square(columns - point[:, None]).sum(axis=0)
    nearest = int(np.argmin(squares))
    return float(np.sqrt(squares[nearest])), nearest


def delta_star(distances: np.ndarray, away: np.ndarray) -> float:
    """Return Δ* from each row's distance to the nearest other one, and the distances of extremes to the rows."""
    mean = float(distances.mean())
    whole = float(away.sum()) + len(distances) * mean
    return (float(away.sum()) + float(np.abs(distances - mean).sum())) / whole if whole > 0 else 0.0


def _require_rows(rows: np.ndarray, where: str) -> None:
    if len(rows) == 0:
        raise ConfigError(Problem("it has no rows", where))
