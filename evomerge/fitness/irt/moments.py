"""What responses to some items say linearly of the score on all: means and covariances over models.

With few models sample covariances are noise, so they are shrunk to those that the response model implies, as if
``PRIOR_MODELS`` models had been drawn from it (a conjugate prior of that weight).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from evomerge.fitness.irt.bank import Array, ItemParameters

PRIOR_MODELS = 50
DRAWS = 1024
_LEAST_VARIANCE = 1e-6

Rows = npt.NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class ScoreMoments:
    """Means and covariances of the responses to all items; the score is their mean.

    Attributes:
        means: float64 (items,).
        factors: float64 (any, items); the covariance of the items is ``factors.T @ factors`` and ``noise``.
        noise: float64 (items,), what is added to the variances.
    """

    means: Array
    factors: Array
    noise: Array

    @classmethod
    def of(cls, parameters: ItemParameters, responses: Array) -> ScoreMoments:
        """Return the moments over models with these responses, float64 (models, items) without gaps."""
        draw = np.random.default_rng(0).standard_normal((DRAWS, parameters.dimensions))
        chance = parameters.lower + (parameters.upper - parameters.lower) * expit(
            draw @ parameters.slopes.T + parameters.intercepts
        )
        share = len(responses) / (len(responses) + PRIOR_MODELS)
        means = share * responses.mean(0) + (1 - share) * chance.mean(0)
        factors = np.concatenate(
            [
                np.sqrt(share / len(responses)) * (responses - responses.mean(0)),
                np.sqrt((1 - share) / DRAWS) * (chance - chance.mean(0)),
            ]
        )
        return cls(means, factors, (1 - share) * (chance * (1 - chance)).mean(0) + _LEAST_VARIANCE)

    def weights(self, rows: Rows) -> tuple[Array, float]:
        """Return the best linear predictor of the score from the responses to some items: weights and offset."""
        chosen = self.factors[:, rows]
        covariance = chosen.T @ chosen + np.diag(self.noise[rows])
        weights = np.asarray(np.linalg.solve(covariance, self._with_score()[rows]), dtype=np.float64)
        return weights, float(self.means.mean() - weights @ self.means[rows])

    def best_items(self, count: int) -> Rows:
        """Return the items that predict the score best, by forward selection, the most telling first."""
        items = len(self.means)
        left, variances = self._with_score(), np.square(self.factors).sum(0) + self.noise
        parts: list[Array] = []  # columns of a pivoted Cholesky factor of the covariance
        rows: list[int] = []
        for _ in range(count):
            gains = left**2 / variances
            gains[rows] = -1
            best = int(gains.argmax())
            column = self.factors.T @ self.factors[:, best]
            column[best] += self.noise[best]
            for part in parts:
                column -= part[best] * part
            column /= np.sqrt(column[best])
            left = left - column * left[best] / column[best]
            variances = np.maximum(variances - column**2, _LEAST_VARIANCE)
            parts.append(column)
            rows.append(best)
        assert len(set(rows)) == count <= items
        return np.array(rows, dtype=np.intp)

    def _with_score(self) -> Array:
        """Return each item's covariance with the score, (items,)."""
        covariances: Array = self.factors.T @ self.factors.mean(1) + self.noise / len(self.means)
        return covariances
