"""What a quadratic misses, where its neighbours were missed too: a Gaussian process over the residuals.

A quadratic describes a whole landscape from few evaluations, but not its bumps. The residuals of those already there
tell of the bumps nearby: kriging with a quadratic trend (Cressie 1993, section 3.4). The residuals' variance is the
misfit of the quadratic; how much of it neighbours share, and how far, is what makes the residuals likeliest among a few
choices.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.spatial.distance import cdist

from evomerge.searchers.surrogates.links import Array, LinkName
from evomerge.searchers.surrogates.quadratic import Quadratic, terms_of

LENGTHS = (0.05, 0.1, 0.2, 0.4, 0.8)  # in units of the box, times the root of its dimensions
SHARES = (0.0, 0.25, 0.5, 0.75, 0.95)  # of the misfit's variance that neighbours have in common
RANGES: Mapping[LinkName, tuple[float, float]] = MappingProxyType(
    {"identity": (-math.inf, math.inf), "logit": (0.0, 1.0), "softplus": (0.0, math.inf)}
)
FEWEST = 3  # evaluations more than coefficients that it takes to tell bumps from a wrong fit


@dataclass(frozen=True, eq=False)
class Corrected:
    """A quadratic surrogate with its residuals' Gaussian process.

    Attributes:
        quadratic: the trend.
        points: evaluated, float64 (evaluations, d).
        length: of the Matérn 5/2 correlation.
        share: of the misfit's variance that is correlated; 0 leaves the quadratic as it is.
        weights: of the evaluations' correlations with a point, float64 (evaluations,).
    """

    quadratic: Quadratic
    points: Array
    length: float
    share: float
    weights: Array
    _factor: tuple[Array, bool]

    def __call__(self, points: Array) -> Array:
        """Return predicted values (m,) at points (m, d) of the box, in the link's range."""
        values = self.quadratic(points)
        if not self.share:
            return values
        found = values + self._correlations(points) @ self.weights
        return np.clip(found, *RANGES[self.quadratic.link.name])

    def errors(self, points: Array) -> Array:
        """Return the standard deviations (m,) of predicted values: the quadratic's and what neighbours leave open."""
        of_trend = self.quadratic.errors(points)
        if not self.share:
            return of_trend
        shared = self.share * self.quadratic.misfit**2
        across = self._correlations(points)
        left = shared - shared**2 * (across * cho_solve(self._factor, across.T).T).sum(1)
        return np.sqrt(of_trend**2 + np.maximum(left, 0))

    @property
    def misfit(self) -> float:
        """Standard deviation of what neighbours do not tell either, in the objective's units."""
        return math.sqrt(1 - self.share) * self.quadratic.misfit

    def _correlations(self, points: Array) -> Array:
        return _matern(cdist(points, self.points), self.length)


def corrected(quadratic: Quadratic, points: Array, values: Array, standard_errors: Array) -> Corrected:
    """Return a surrogate together with what its residuals tell of their neighbourhoods.

    Args:
        quadratic: fitted to the values.
        points: evaluated, float64 (evaluations, d), of the unit box.
        values: the objective there, float64 (evaluations,).
        standard_errors: of the values, float64 (evaluations,).
    """
    residuals, apart = values - quadratic(points), cdist(points, points)
    scale, variance = np.sqrt(points.shape[1]), quadratic.misfit**2
    enough = len(values) >= terms_of(points.shape[1]) + FEWEST and variance > 0
    best: tuple[float, Corrected] | None = None
    for length in scale * np.array(LENGTHS):
        for share in SHARES if enough else SHARES[:1]:
            noise = np.diag((1 - share) * variance + np.square(standard_errors) + 1e-9 * variance + 1e-300)
            covariance = share * variance * _matern(apart, length) + noise
            factor = cho_factor(covariance, lower=True)
            solved = cho_solve(factor, residuals)
            likelihood = -0.5 * float(residuals @ solved) - float(np.log(np.diag(factor[0])).sum())
            if best is None or likelihood > best[0]:
                best = likelihood, Corrected(quadratic, points, length, share, share * variance * solved, factor)
    assert best is not None
    return best[1]


def _matern(apart: Array, length: float) -> Array:
    scaled = np.sqrt(5) * apart / length
    return np.asarray((1 + scaled + np.square(scaled) / 3) * np.exp(-scaled))
