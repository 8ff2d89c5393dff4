"""Dominance: a row dominates another if it is at least as good in every objective and better in one."""

from __future__ import annotations

import moocore
import numpy as np
from numpy.typing import ArrayLike

from evomerge.fronts.gains import checked


def nondominated(gains: ArrayLike) -> np.ndarray:
    """Return which rows no other row dominates; all of equal rows are kept.

    Args:
        gains: (rows, objectives), larger is better.

    Returns:
        bool (rows,).

    Raises:
        ConfigError: a gain is NaN or infinite.
    """
    rows = checked(gains)
    return np.asarray(moocore.is_nondominated(rows, maximise=True, keep_weakly=True), dtype=bool)


def ranks(gains: ArrayLike) -> np.ndarray:
    """Return the rank of each row in non-dominated sorting (Deb et al. 2002, "A fast and elitist … NSGA-II").

    The front has rank 0, what would be the front without it rank 1, and so on; equal rows have equal ranks.

    Args:
        gains: (rows, objectives), larger is better.

    Returns:
        int64 (rows,).

    Raises:
        ConfigError: a gain is NaN or infinite.
    """
    rows = checked(gains)
    if len(rows) == 0:
        return np.zeros(0, dtype=np.int64)
    return np.asarray(moocore.pareto_rank(-rows), dtype=np.int64)
