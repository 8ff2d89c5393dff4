"""Drawing members by weight, with one number from the generator each, so that equal numbers mean equal draws."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def drawn(generator: np.random.Generator, weights: Array) -> int:
    """Return an index, drawn in proportion to weights of at least 0; uniformly if all of them are 0."""
    sums = np.cumsum(weights if weights.any() else np.ones_like(weights))
    return int(np.searchsorted(sums, generator.random() * sums[-1], side="right"))


def drawn_other(generator: np.random.Generator, weights: Array, first: int) -> int:
    """Return an index as `drawn` does, but not ``first``; there must be another."""
    others = np.delete(weights, first)
    index = drawn(generator, others)
    return index + (index >= first)
