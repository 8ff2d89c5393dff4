"""Competition and attraction: what M2N2 makes of the members' scores on single items.

Abrantes, Lange and Tang 2025, *Competition and Attraction Improve Model Fusion* (https://arxiv.org/abs/2508.16204). An
item is a resource that the members share, so a member that solves what few others solve gains most. Scores are arrays
``(members, items)`` of numbers of at least 0, higher is better.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
ROUNDING = 1e-12  # shares of a few items sum to equal numbers in many ways


def gains(scores: Array, alpha: float, capacities: Array | float = 1.0) -> Array:
    """Return what each member gains of each item: cⱼ sᵢⱼ / zⱼ^α with zⱼ = Σᵢ sᵢⱼ, and 0 of an item that nobody solves.

    Args:
        scores: sᵢⱼ.
        alpha: how strongly members compete; 0: not at all.
        capacities: cⱼ, ``(items,)`` or one for all.
    """
    total = scores.sum(axis=0)
    return capacities * scores / np.where(total, total, 1.0) ** alpha


def attraction(gained: Array, first: int) -> Array:
    """Return how much each member attracts the member ``first``: Σⱼ max(0, gᵢⱼ − gⱼ), what it adds on each item."""
    return np.maximum(0.0, gained - gained[first]).sum(axis=1)


def weakest(gained: Array) -> int:
    """Return the member that gains least in all, the first of several that differ by rounding alone."""
    total = gained.sum(axis=1)
    return int(np.argmax(total <= total.min() * (1 + ROUNDING)))
