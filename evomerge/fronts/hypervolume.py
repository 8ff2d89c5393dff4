"""Hypervolume: how much of the space of objectives a set dominates, beyond a reference point."""

from __future__ import annotations

import moocore
import numpy as np
from numpy.typing import ArrayLike

from evomerge.fronts.gains import checked, checked_row

FEW = 256  # so many rows moocore filters faster than we thin them
PASSES = 16


def hypervolume(gains: ArrayLike, reference: ArrayLike) -> float:
    """Return the volume that the rows dominate beyond ``reference``, in the product of the objectives' units.

    Rows that do not exceed the reference in every objective add nothing (Zitzler and Thiele 1998).

    Args:
        gains: (rows, objectives), larger is better.
        reference: (objectives,).

    Raises:
        ConfigError: a gain is NaN or infinite, or the shapes do not fit.
    """
    rows = checked(gains)
    return _volume(rows, checked_row(reference, rows.shape[1]))


def exclusive(point: np.ndarray, columns: np.ndarray, reference: np.ndarray) -> float:
    """Return the volume that ``point`` dominates and no column does (While et al. 2012, "A fast way …", WFG).

    That is the point's box, less what the others, limited to this box, dominate of it. Few of the limited ones are
    non-dominated: some dozens for thousands of points in five objectives, so the volume itself costs little.

    Args:
        point: (objectives,), finite.
        columns: (objectives, points), finite.
        reference: (objectives,).
    """
    if not (point > reference).all():
        return 0.0
    box = float(np.prod(point - reference))
    limited = np.minimum(columns, point[:, None])
    limited = limited.take(_anywhere(limited <= reference[:, None], wanted=False), axis=1)
    return max(0.0, box - _volume(_thinned(limited, reference).T, reference))


def _volume(rows: np.ndarray, reference: np.ndarray) -> float:
    beyond = rows[(rows > reference).all(axis=1)]
    return float(moocore.hypervolume(-beyond, ref=-reference)) if len(beyond) else 0.0


def _thinned(columns: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Return the columns less the dominated ones; first, and fast, less those in one of the largest boxes."""
    largest: list[np.ndarray] = []
    volumes = np.prod(columns - reference[:, None], axis=0)
    while columns.shape[1] > FEW and len(largest) < PASSES:
        pivot = columns[:, np.argmax(volumes)]
        largest.append(pivot)
        outside = _anywhere(columns > pivot[:, None], wanted=True)
        columns, volumes = columns.take(outside, axis=1), volumes.take(outside)
    kept = np.column_stack([*largest, columns]) if largest else columns
    return np.asarray(kept[:, moocore.is_nondominated(kept.T, maximise=True)]) if kept.shape[1] else kept


def _anywhere(holds: np.ndarray, *, wanted: bool) -> np.ndarray:
    """Return the columns in which something does hold anywhere, or, if that is not wanted, nowhere."""
    return np.flatnonzero(holds.any(axis=0) == wanted)
