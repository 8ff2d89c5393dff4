"""What every measure here asks of its arrays."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from evomerge.errors import ConfigError, Problem


def checked(gains: ArrayLike) -> np.ndarray:
    """Return gains as float64 (rows, objectives).

    Raises:
        ConfigError: they are no such array, or one of them is NaN or infinite.
    """
    rows = np.asarray(gains, dtype=np.float64)
    if rows.ndim != 2 or rows.shape[1] == 0:
        raise ConfigError(Problem(f"gains must be an array (rows, objectives), not one of shape {rows.shape}"))
    bad = np.argwhere(~np.isfinite(rows))
    if len(bad):
        row, objective = map(int, bad[0])
        more = f", and {len(bad) - 1} more values are not finite" if len(bad) > 1 else ""
        raise ConfigError(
            Problem(
                f"objective {objective} of row {row} is {rows[row, objective]}{more}",
                "gains",
                "leave out rows that have no finite score in every objective",
            )
        )
    return rows


def checked_row(gains: ArrayLike, objectives: int | None = None) -> np.ndarray:
    """Return one row of gains as float64 (objectives,).

    Raises:
        ConfigError: it is no such row, has another length than ``objectives``, or is not finite.
    """
    row = np.asarray(gains, dtype=np.float64)
    if row.ndim != 1 or (objectives is not None and len(row) != objectives):
        wanted = "objectives" if objectives is None else objectives
        raise ConfigError(Problem(f"a row of gains must have the shape ({wanted},), not {row.shape}"))
    return checked(row[None])[0]


def widths(gains: np.ndarray) -> np.ndarray:
    """Return each objective's range over the rows, 1 where there is none: what distances are scaled by."""
    found = gains.max(axis=0) - gains.min(axis=0)
    return np.where(found > 0, found, 1.0)
