"""Soft responses as control variates: what is known on many items, and less noisily, corrects what is seen on a few.

How probable a model finds the right answers (`evomerge.fitness.gold`) goes with how many it gives. The mean of that
over many items, less its estimate from the few items asked, says how the few differ from the many; and on these few,
what it is less the responses says how these differ from their expectation.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.special import expit, logit

from evomerge.fitness.irt.bank import Array
from evomerge.fitness.irt.extract import Subset

_EDGE = 1e-4  # probabilities count as at least this, and at most 1 less this
_PRECISION = 1e-3  # of the prior on both numbers of the calibration
_STEPS = 30


class SoftScale(NamedTuple):
    """From the probability p of the right answer to that of giving it: sigmoid(intercept + slope logit p)."""

    intercept: float
    slope: float

    def __call__(self, gold: Array) -> Array:
        """Return the probabilities of success, of the shape of ``gold``."""
        chance: Array = expit(self.intercept + self.slope * logit(np.clip(gold, _EDGE, 1 - _EDGE)))
        return chance


def fit_scale(gold: Array, responses: Array) -> SoftScale:
    """Fit a scale by logistic regression over all models and items where both are there, float64 (models, items)."""
    both = ~(np.isnan(gold) | np.isnan(responses))
    known = logit(np.clip(gold[both], _EDGE, 1 - _EDGE))
    design, answers = np.stack([np.ones_like(known), known]), responses[both]
    found = np.array([0.0, 1.0])
    for _ in range(_STEPS):
        chance = expit(found @ design)
        gradient = design @ (answers - chance) - _PRECISION * found
        step = np.linalg.solve((design * (chance * (1 - chance))) @ design.T + _PRECISION * np.eye(2), gradient)
        found = found + step / max(1.0, float(np.abs(step).max()))
        if np.abs(step).max() < 1e-10:
            break
    return SoftScale(float(found[0]), float(found[1]))


def differences(chances: Array, values: Array, subset: Subset) -> Array:
    """Return by how much the subset underestimates each model's mean chance over all items, and responses the chance.

    Args:
        chances: of success by soft responses, float64 (models, items), NaN where there is none.
        values: responses to the subset, float64 (models, items of the subset).
        subset: items for which soft responses are there.

    Returns:
        float64 (models, 2).
    """
    of_subset = chances[:, subset.rows] @ subset.weights
    return np.stack(
        [np.nanmean(chances, axis=1) - (of_subset + subset.offset), of_subset - values @ subset.weights], axis=1
    )
