"""Which items to ask next, given the responses so far: those that most reduce what is not known of the score."""

from __future__ import annotations

import numpy as np
from scipy.special import expit

from evomerge.fitness.irt.bank import Array, ItemParameters
from evomerge.fitness.irt.likelihood import abilities
from evomerge.fitness.irt.moments import Rows

DRAWS = 16  # abilities from the posterior, over which the gain is averaged


def next_items(parameters: ItemParameters, rows: Rows, values: Array, count: int) -> Rows:
    """Return at most ``count`` further items, the most telling first.

    Each reduces most the variance of the expected score over the ability's posterior (c-optimal design for the
    gradient of the score, averaged over the posterior), and settles its own response.

    Args:
        parameters: of all items.
        rows: of the items asked so far.
        values: the responses to them, float64 (items asked,).
        count: how many more.
    """
    found = abilities(parameters.chosen(rows), values[None])
    mean, covariance = found.means[0], found.covariances[0]
    draws = np.random.default_rng(0).standard_normal((DRAWS, parameters.dimensions))
    at = mean + draws @ np.linalg.cholesky(covariance + 1e-9 * np.eye(len(mean))).T
    logistic = expit(at @ parameters.slopes.T + parameters.intercepts)
    span = parameters.upper - parameters.lower
    chance = parameters.lower + span * logistic
    rate = span * logistic * (1 - logistic)
    unknown = chance * (1 - chance)
    information = rate**2 / np.maximum(unknown, 1e-12)
    gradient = rate @ parameters.slopes  # (draws, dimensions), of the sum over all items
    spread: Array = np.tile(covariance, (DRAWS, 1, 1))
    asked, more = set(rows.tolist()), min(count, len(parameters) - len(rows))
    chosen: list[int] = []
    for _ in range(more):
        towards = spread @ parameters.slopes.T  # (draws, dimensions, items)
        along = (towards * parameters.slopes.T).sum(1)
        scale = information / (1 + information * along)
        gains = (scale * np.einsum("ad,adi->ai", gradient, towards) ** 2 + unknown).mean(0)
        gains[[*asked, *chosen]] = -1
        best = int(gains.argmax())
        known = towards[:, :, best]
        spread = spread - scale[:, best, None, None] * known[:, :, None] * known[:, None, :]
        chosen.append(best)
    return np.array(chosen, dtype=np.intp)
