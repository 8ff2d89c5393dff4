"""One quadratic surrogate of one objective: value = link(e + bᵀx + xᵀA x). MAP's equation 4.

Fitted in the objective's own units by Gauss-Newton steps, each a weighted least-squares problem (McCullagh and Nelder
1989, section 2.5). A weight is 1 / (standard error² + misfit²); the misfit of the quadratic itself is estimated from
the residuals (Paule and Mandel 1982). Leave-one-out predictions come from the leverages of the last step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq

from evomerge.searchers.surrogates.links import LINKS, Array, Link, LinkName

RIDGES: tuple[float, ...] = tuple(10.0**power for power in range(3, -7, -1))
_CONSTANT = 1e2  # how much freer of the ridge the constant is than other coefficients
_STEPS, _HALVINGS, _ROUNDS, _TOLERANCE = 50, 30, 8, 1e-13
_LEAST_SLOPE = 1e-9  # of a link: where it is flat, a value says nothing about the line
_LEAST_LEFT = 0.5  # degrees of freedom
_CHUNK = 2**22  # numbers at a time when uncertainties of many points are asked


@dataclass(frozen=True, eq=False)
class Quadratic:
    """A fitted surrogate over the box [0, 1]ᵈ.

    Attributes:
        link: from the quadratic to values.
        constant: e, at the centre of the box.
        linear: b, float64 (d,), by x = 2u − 1 for a point u of the box.
        curvature: A, symmetric float64 (d, d).
        ridge: what draws coefficients to zero, relative to an evaluation's information; 0 for nothing.
        misfit: standard deviation of what the quadratic cannot say, in the objective's units.
        r2: share of the values' variance that the fit explains.
        left_out: what each evaluation is predicted to be by the others, float64 (evaluations,).
        r2_left_out: share of the variance that these explain; may be negative.
        error_left_out: their root mean square error.
    """

    link: Link
    constant: float
    linear: Array
    curvature: Array
    ridge: float
    misfit: float
    r2: float
    left_out: Array
    r2_left_out: float
    error_left_out: float
    _told: _Told

    def line(self, points: Array) -> Array:
        """Return the quadratic itself, before the link, at points (m, d)."""
        x = 2 * points - 1
        return np.asarray(self.constant + x @ self.linear + ((x @ self.curvature) * x).sum(1))

    def __call__(self, points: Array) -> Array:
        """Return predicted values (m,) at points (m, d) of the box."""
        return self.link.value(self.line(points))

    def line_errors(self, points: Array) -> Array:
        """Return the posterior standard deviations (m,) of `line`."""
        at_once = max(1, _CHUNK // self._told.basis.size)
        parts = [points[start : start + at_once] for start in range(0, len(points), at_once)]
        return np.sqrt(np.concatenate([self._told.variances(features(part)) for part in parts]))

    def errors(self, points: Array) -> Array:
        """Return the standard deviations (m,) of predicted values, of first order in those of the line."""
        return self.link.slope(self.line(points)) * self.line_errors(points)


class _Told(NamedTuple):
    """What the evaluations tell of the coefficients, which the ridge's prior adds to.

    ``basis`` (terms, rank) are directions, orthonormal in units of the prior, ``precisions`` (rank,) those along them,
    prior included, ``prior`` the precision along all others (0: there are none), all over ``scale``, a variance.
    """

    basis: Array
    precisions: Array
    prior: float
    scale: float

    def variances(self, terms: Array) -> Array:
        free = terms * _freedom(terms.shape[1])
        along = np.square(free @ self.basis)
        found = (along / self.precisions).sum(1)
        if self.prior:
            found += np.maximum(np.square(free).sum(1) - along.sum(1), 0) / self.prior
        return np.asarray(self.scale * found)


def terms_of(dimensions: int) -> int:
    """Return the number of coefficients of a quadratic, (d + 1)(d + 2) / 2."""
    return (dimensions + 1) * (dimensions + 2) // 2


def features(points: Array) -> Array:
    """Return the monomials (m, terms) of points (m, d): 1, xᵢ, then xᵢxⱼ for i ≤ j, of x = 2u − 1."""
    x = 2 * points - 1
    row, column = np.triu_indices(x.shape[1])
    return np.concatenate([np.ones((len(x), 1)), x, x[:, row] * x[:, column]], axis=1)


def fit(
    points: Array,
    values: Array,
    link: LinkName = "identity",
    standard_errors: Array | None = None,
    ridge: float | None = None,
) -> Quadratic:
    """Return the quadratic surrogate of an objective.

    Args:
        points: evaluated, float64 (evaluations, d), of the unit box.
        values: the objective there, float64 (evaluations,), in the link's range.
        link: from the quadratic to values.
        standard_errors: of the values, float64 (evaluations,); None: exact values.
        ridge: draws all coefficients but the constant to zero; None: whichever of `RIDGES` (and 0, where there are more
            evaluations than coefficients) predicts evaluations best from the others.

    Raises:
        ValueError: no evaluation, a number that is not finite, or no ridge with too few evaluations.
    """
    noise = np.zeros(len(values)) if standard_errors is None else standard_errors
    if not len(values) or not (np.isfinite(points).all() and np.isfinite(values).all() and np.isfinite(noise).all()):
        raise ValueError("a surrogate needs evaluations, all of them finite")
    data = _Data(features(points), values, noise, LINKS[link])
    if ridge is None:
        ridges = (*RIDGES, 0.0) if len(values) > data.terms.shape[1] and data.is_determined() else RIDGES
    elif ridge > 0 or data.is_determined():
        ridges = (ridge,)
    else:
        raise ValueError(f"{len(values)} evaluations do not determine {data.terms.shape[1]} coefficients without ridge")
    best: Quadratic | None = None
    coefficients = np.zeros(data.terms.shape[1])
    for each in ridges:  # from strong to weak, each from the last one's coefficients
        coefficients, found = _fit(data, each, coefficients)
        if best is None or found.error_left_out < best.error_left_out:
            best = found
    assert best is not None
    return best


class _Data(NamedTuple):
    terms: Array
    values: Array
    noise: Array
    link: Link

    def is_determined(self) -> bool:
        return bool(np.linalg.matrix_rank(self.terms) == self.terms.shape[1])

    @property
    def offset(self) -> float:
        """What the line is where all coefficients are 0."""
        return float(self.link.start(np.array([self.values.mean()]))[0])


class _Step(NamedTuple):
    """A weighted least-squares problem at some coefficients, taken apart into its singular directions."""

    left: Array
    singular: Array
    right: Array  # (terms, rank)
    gaps: Array

    def solved(self, ridge: float) -> Array:
        """Return the change of coefficients, in units of the prior."""
        return self.right @ (self.singular / (np.square(self.singular) + ridge) * (self.left.T @ self.gaps))

    def leverages(self, ridge: float) -> Array:
        squares = np.square(self.singular)
        return np.asarray(np.square(self.left) @ (squares / (squares + ridge)))


def _freedom(count: int) -> Array:
    free = np.ones(count)
    free[0] = _CONSTANT
    return free


def _fit(data: _Data, ridge: float, coefficients: Array) -> tuple[Array, Quadratic]:
    """Fit with a given ridge: coefficients for given weights, the misfit for given coefficients, by turns."""
    misfit = 0.0
    floor = 1e-6 * (float(np.ptp(data.values)) or float(data.noise.max()) or 1.0)
    for _ in range(_ROUNDS):
        variances = np.square(data.noise) + max(misfit, floor) ** 2
        weights = variances.min() / variances
        coefficients = _converged(data, weights, ridge, coefficients)
        before, misfit = misfit, _misfit(data, weights, ridge, coefficients)
        if not data.noise.any() or abs(misfit - before) <= 1e-3 * max(misfit, floor):
            break
    variances = np.square(data.noise) + max(misfit, floor) ** 2
    return coefficients, _described(data, variances, ridge, coefficients, misfit)


def _line(data: _Data, coefficients: Array) -> Array:
    return np.asarray(data.offset + data.terms @ coefficients)


def _step(data: _Data, weights: Array, coefficients: Array) -> _Step:
    """Return the Gauss-Newton step: a change δ of coefficients β by the least squares of residuals, and of β + δ."""
    line, free = _line(data, coefficients), _freedom(len(coefficients))
    root = np.sqrt(weights)
    slope = np.maximum(data.link.slope(line), _LEAST_SLOPE)
    design = (root * slope)[:, None] * data.terms * free
    gaps = root * (data.values - data.link.value(line)) + design @ (coefficients / free)
    return _Step(*_directions(design), gaps)


def _height(data: _Data, weights: Array, ridge: float, coefficients: Array) -> float:
    apart = data.values - data.link.value(_line(data, coefficients))
    penalty = ridge * float(np.square(coefficients / _freedom(len(coefficients))).sum())
    return float((weights * np.square(apart)).sum()) + penalty


def _converged(data: _Data, weights: Array, ridge: float, coefficients: Array) -> Array:
    """Return the coefficients at the end of Gauss-Newton's steps, begun at the best of three places."""
    free = _freedom(len(coefficients))
    starts = (coefficients, _straight(data, weights, ridge), np.zeros_like(coefficients))
    coefficients = min(starts, key=lambda start: _height(data, weights, ridge, start))
    height = _height(data, weights, ridge, coefficients)
    for _ in range(_STEPS):
        aim = free * _step(data, weights, coefficients).solved(ridge)
        share = 1.0
        for _ in range(_HALVINGS):
            moved = coefficients + share * (aim - coefficients)
            lower = _height(data, weights, ridge, moved)
            if lower <= height:
                break
            share /= 2
        else:
            return coefficients
        done = height - lower <= _TOLERANCE * height
        coefficients, height = moved, lower
        if done:
            break
    return coefficients


def _straight(data: _Data, weights: Array, ridge: float) -> Array:
    """Return the coefficients of one weighted ridge fit of the line to where the values lie on it."""
    line, free = data.link.start(data.values), _freedom(data.terms.shape[1])
    root = np.sqrt(weights) * data.link.slope(line)
    left, singular, right = _directions(root[:, None] * data.terms * free)
    gains = singular / (np.square(singular) + ridge)
    return np.asarray(free * (right @ (gains * (left.T @ (root * (line - data.offset))))))


def _directions(design: Array) -> tuple[Array, Array, Array]:
    """Return the singular directions (evaluations, rank), values (rank,) and (terms, rank) of a design."""
    left, singular, right = np.linalg.svd(design, full_matrices=False)
    held = singular > 1e-12 * singular.max(initial=1e-300)
    return left[:, held], singular[held], right[held].T


def _misfit(data: _Data, weights: Array, ridge: float, coefficients: Array) -> float:
    """Return the standard deviation of residuals that standard errors do not account for."""
    squares = np.square(data.values - data.link.value(_line(data, coefficients)))
    leverages = _step(data, weights, coefficients).leverages(ridge)
    left = len(squares) - float(leverages.sum())
    if left < _LEAST_LEFT:  # nothing is left to judge by but how evaluations are predicted without themselves
        squares, left = np.square(data.values - _left_out(data, coefficients, leverages)), float(len(squares))
    noise = np.square(data.noise)
    if not noise.any():
        return math.sqrt(squares.sum() / left)
    high = float(squares.sum() / left)

    def excess(variance: float) -> float:
        return float((squares / (noise + variance)).sum()) - left

    lowest = 1e-12 * high
    if high == 0 or excess(lowest) <= 0:
        return 0.0
    return math.sqrt(brentq(excess, lowest, high * len(squares)))


def _left_out(data: _Data, coefficients: Array, leverages: Array) -> Array:
    """Return what each evaluation is predicted to be by the others, to first order on the line."""
    line = _line(data, coefficients)
    slope = np.maximum(data.link.slope(line), _LEAST_SLOPE)
    share = leverages / np.maximum(1 - leverages, 1e-12)
    return data.link.value(line - share * (data.values - data.link.value(line)) / slope)


def _described(data: _Data, variances: Array, ridge: float, coefficients: Array, misfit: float) -> Quadratic:
    step = _step(data, variances.min() / variances, coefficients)
    left_out = _left_out(data, coefficients, step.leverages(ridge))
    apart = data.values - data.link.value(_line(data, coefficients))
    total = float(np.square(data.values - data.values.mean()).sum())
    dimensions = _dimensions(data.terms.shape[1])
    row, column = np.triu_indices(dimensions)
    curvature = np.zeros((dimensions, dimensions))
    curvature[row, column] = coefficients[1 + dimensions :]
    lost = np.square(data.values - left_out)
    prior = ridge if len(step.singular) < len(coefficients) else 0.0
    return Quadratic(
        link=data.link,
        constant=data.offset + float(coefficients[0]),
        linear=coefficients[1 : 1 + dimensions],
        curvature=(curvature + curvature.T) / 2,
        ridge=ridge,
        misfit=misfit,
        r2=_explained(np.square(apart), total),
        left_out=left_out,
        r2_left_out=_explained(lost, total),
        error_left_out=math.sqrt(lost.mean()),
        _told=_Told(step.right, np.square(step.singular) + ridge, prior, float(variances.min())),
    )


def _explained(squares: Array, total: float) -> float:
    """Return 1 − Σ squares / total; of values that are all equal nothing is to explain."""
    return 1 - float(squares.sum()) / total if total > 0 else float(not squares.any())


def _dimensions(terms: int) -> int:
    return (math.isqrt(8 * terms + 1) - 3) // 2
