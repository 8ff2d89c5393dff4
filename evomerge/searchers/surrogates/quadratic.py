"""One quadratic surrogate of one objective: value = link(e + bᵀx + xᵀA x). MAP's equation 4.

Fitted in the objective's own units by Gauss-Newton steps, each a weighted least-squares problem (McCullagh and Nelder
1989, section 2.5). A weight is 1 / (standard error² + misfit²); the misfit of the quadratic itself is estimated from
the residuals (Paule and Mandel 1982). Leave-one-out predictions come from the leverages of the last step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq

from evomerge.searchers.surrogates.links import LINKS, Array, Link, LinkName

RIDGES: tuple[float, ...] = tuple(10.0**power for power in range(3, -7, -1))
_CONSTANT = 1e2  # how much freer of the ridge the constant is than other coefficients
_STEPS, _HALVINGS, _ROUNDS = 50, 30, 40
_LOOSE, _TIGHT = 1e-6, 1e-13  # relative changes of the sum of squares at which steps end
_LEAST_SINGULAR = 1e-12  # of the largest: below, points do not tell a direction of coefficients apart
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
        ridge: what draws coefficients to zero, relative to what an evaluation of the mean value tells; 0 for nothing.
        misfit: standard deviation of what the quadratic cannot say, in the objective's units.
        r2: share of the values' variance that the fit explains.
        left_out: what each evaluation is predicted to be by the others, float64 (evaluations,).
        r2_left_out: share of the variance that these explain; may be negative.
        r2_error: standard error of that share, from how unequal the squared misses are.
        error_left_out: their root mean square error.

    Shares and errors count evaluations by their weights.
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
    r2_error: float
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
        """Return the standard deviations (m,) of predicted values: half of what those of the line span."""
        line, apart = self.line(points), self.line_errors(points)
        return (self.link.value(line + apart) - self.link.value(line - apart)) / 2


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
    problem = _Problem(points, values, noise, LINKS[link])
    start = np.zeros(problem.design.shape[1])
    if ridge is None:
        spare = problem.is_determined and len(values) > len(problem.basis)
        ridge, start = _best_ridge(problem, (*RIDGES, 0.0) if spare else RIDGES)
    elif ridge <= 0 and not problem.is_determined:
        raise ValueError(f"{len(values)} evaluations do not determine {len(problem.basis)} coefficients without ridge")
    return _described(problem, ridge, _fit(problem, ridge, start, _TIGHT))


def _best_ridge(problem: _Problem, ridges: Sequence[float]) -> tuple[float, Array]:
    """Return the ridge, of these from strong to weak, that predicts evaluations best from the others.

    Each fit begins with the last one's coefficients, and goes no further than is needed to compare it; the best one's
    coefficients are returned too.
    """
    coefficients = np.zeros(problem.design.shape[1])
    fits = []
    for ridge in ridges:
        fits.append(_fit(problem, ridge, coefficients, _LOOSE))
        coefficients = fits[-1].coefficients
    shares = problem.shares(float(np.median([found.misfit for found in fits])))
    lost = [float(shares @ np.square(problem.values - found.left_out)) for found in fits]
    best = int(np.argmin(lost))
    return ridges[best], fits[best].coefficients


class _Problem:
    """The least squares of one objective, in the directions of coefficients that its points tell apart.

    Attributes:
        values, noise, link: as given, float64 (evaluations,).
        basis: the directions, (terms, rank), orthonormal in units of the prior.
        design: (evaluations, rank); times coefficients along the directions, plus ``offset``, it is the line.
        offset: what the line is where all coefficients are 0.
        information: what a value there tells of the line: the square of the link's slope.
        floor: the least standard deviation that an evaluation is taken to have.
    """

    def __init__(self, points: Array, values: Array, noise: Array, link: Link) -> None:
        self.values, self.noise, self.link = values, noise, link
        terms = features(points)
        left, singular, self.basis = _directions(terms * _freedom(terms.shape[1]))
        self.design = left * singular
        trust = np.square(noise[noise > 0].min() / np.maximum(noise, noise[noise > 0].min())) if noise.any() else None
        mean = float(np.average(values, weights=trust))
        spread = math.sqrt(np.average(np.square(values - mean), weights=trust))
        self.floor = 1e-6 * (spread or float(noise.max()) or 1.0)
        self.offset = float(link.start(np.array([mean]))[0])
        self.information = float(np.square(self.slope(np.array([self.offset])))[0])
        self._parted = lru_cache(maxsize=8)(self._part)

    @property
    def is_determined(self) -> bool:
        """Whether the points tell all coefficients apart."""
        return self.basis.shape[1] == len(self.basis)

    def variances(self, misfit: float) -> Array:
        """Return how far values are expected to be from the quadratic, squared."""
        return np.asarray(np.square(self.noise) + max(misfit, self.floor) ** 2)

    def shares(self, misfit: float) -> Array:
        """Return how much evaluations count in means, (evaluations,), together 1."""
        weights = 1 / self.variances(misfit)
        return np.asarray(weights / weights.sum())

    def line(self, coefficients: Array) -> Array:
        return np.asarray(self.offset + self.design @ coefficients)

    def apart(self, coefficients: Array) -> Array:
        """Return how far values are above the fit."""
        return self.values - self.link.value(self.line(coefficients))

    def slope(self, line: Array) -> Array:
        return np.maximum(self.link.slope(line), _LEAST_SLOPE)

    def step(self, root: Array, coefficients: Array) -> _Step:
        """Return the Gauss-Newton step: least squares of the residuals, plus what the coefficients themselves say.

        Args:
            root: the square roots of weights, (evaluations,).
            coefficients: (rank,).
        """
        scales = root * self.slope(self.line(coefficients))
        gaps = root * self.apart(coefficients) + scales * (self.design @ coefficients)
        return _Step(*self.directions(scales), gaps)

    def directions(self, scales: Array) -> tuple[Array, Array, Array]:
        """Return the singular directions of the design with scaled rows; an identity link asks for the same ones."""
        return self._parted(scales.tobytes())

    def _part(self, scales: bytes) -> tuple[Array, Array, Array]:
        return _directions(np.frombuffer(scales)[:, None] * self.design)


class _Step(NamedTuple):
    """A weighted least-squares problem at some coefficients, taken apart into its singular directions."""

    left: Array
    singular: Array
    right: Array
    gaps: Array

    def solved(self, precision: float) -> Array:
        """Return the coefficients, drawn to 0 by a prior of this precision."""
        return self.right @ (self.singular / (np.square(self.singular) + precision) * (self.left.T @ self.gaps))

    def leverages(self, precision: float) -> Array:
        squares = np.square(self.singular)
        return np.asarray(np.square(self.left) @ (squares / (squares + precision)))


class _Fit(NamedTuple):
    """Coefficients along a problem's directions with a ridge, and what goes with them."""

    coefficients: Array
    misfit: float
    step: _Step
    left_out: Array


def _freedom(count: int) -> Array:
    free = np.ones(count)
    free[0] = _CONSTANT
    return free


def _fit(problem: _Problem, ridge: float, coefficients: Array, tolerance: float) -> _Fit:
    """Fit with a given ridge: coefficients for given weights, the misfit for given coefficients, by turns.

    With a ridge, a larger misfit may make the prior so much freer that none is left, and turns go to and fro; so the
    misfit is kept between the largest that was too small and the smallest that was too large.
    """
    precision, misfit = ridge * problem.information, 0.0
    small, large = 0.0, math.inf
    for _ in range(_ROUNDS):
        variances = problem.variances(misfit)
        root = np.sqrt(variances.min() / variances)
        coefficients = _converged(problem, root, precision, coefficients, tolerance)
        leverages = problem.step(root, coefficients).leverages(precision)
        before, misfit = misfit, _misfit(problem, coefficients, leverages)
        if not problem.noise.any() or abs(misfit - before) <= math.sqrt(tolerance) * max(misfit, problem.floor):
            break
        small, large = (before, large) if misfit > before else (small, before)
        if not small < misfit < large:
            misfit = (small + large) / 2
    variances = problem.variances(misfit)
    step = problem.step(np.sqrt(variances.min() / variances), coefficients)
    return _Fit(coefficients, misfit, step, _left_out(problem, coefficients, step.leverages(precision)))


def _converged(problem: _Problem, root: Array, precision: float, coefficients: Array, tolerance: float) -> Array:
    """Return the coefficients at the end of Gauss-Newton's steps, begun at the best of three places."""

    def height(at: Array) -> float:
        return float(np.square(root * problem.apart(at)).sum()) + precision * float(at @ at)

    starts = (coefficients, _straight(problem, root, precision), np.zeros_like(coefficients))
    coefficients = min(starts, key=height)
    high = height(coefficients)
    for _ in range(_STEPS):
        aim = problem.step(root, coefficients).solved(precision)
        share = 1.0
        for _ in range(_HALVINGS):
            moved = coefficients + share * (aim - coefficients)
            low = height(moved)
            if low <= high:
                break
            share /= 2
        else:
            return coefficients
        done = high - low <= tolerance * high
        coefficients, high = moved, low
        if done:
            break
    return coefficients


def _straight(problem: _Problem, root: Array, precision: float) -> Array:
    """Return the coefficients of one weighted ridge fit of the line to where the values lie on it."""
    line = problem.link.start(problem.values)
    scales = root * problem.link.slope(line)
    return _Step(*problem.directions(scales), scales * (line - problem.offset)).solved(precision)


def _directions(design: Array) -> tuple[Array, Array, Array]:
    """Return the singular directions (evaluations, rank), values (rank,) and (columns, rank) of a design."""
    left, singular, right = np.linalg.svd(design, full_matrices=False)
    held = singular > _LEAST_SINGULAR * singular.max(initial=1e-300)
    return left[:, held], singular[held], right[held].T


def _misfit(problem: _Problem, coefficients: Array, leverages: Array) -> float:
    """Return the standard deviation of residuals that standard errors do not account for."""
    squares = np.square(problem.apart(coefficients))
    left = len(squares) - float(leverages.sum())
    if left < _LEAST_LEFT:  # nothing is left to judge by but how evaluations are predicted without themselves
        squares = np.square(problem.values - _left_out(problem, coefficients, leverages))
        left = float(len(squares))
    most = float(squares.sum()) / left
    if not problem.noise.any():
        return math.sqrt(most)

    def excess(power: float) -> float:
        return float((squares / (np.square(problem.noise) + math.exp(power))).sum()) - left

    least = 2 * math.log(problem.floor)
    if excess(least) <= 0:
        return 0.0
    return math.exp(brentq(excess, least, math.log(most) + 1) / 2)


def _left_out(problem: _Problem, coefficients: Array, leverages: Array) -> Array:
    """Return what each evaluation is predicted to be by the others, to first order on the line."""
    line = problem.line(coefficients)
    share = leverages / np.maximum(1 - leverages, 1e-12)
    return problem.link.value(line - share * problem.apart(coefficients) / problem.slope(line))


def _described(problem: _Problem, ridge: float, found: _Fit) -> Quadratic:
    step, shares = found.step, problem.shares(found.misfit)
    count = len(problem.basis)
    coefficients = _freedom(count) * (problem.basis @ found.coefficients)
    dimensions = _dimensions(count)
    row, column = np.triu_indices(dimensions)
    curvature = np.zeros((dimensions, dimensions))
    curvature[row, column] = coefficients[1 + dimensions :]
    total = float(shares @ np.square(problem.values - shares @ problem.values)) if np.ptp(problem.values) else 0.0
    lost = np.square(problem.values - found.left_out)
    mean_lost, several = float(shares @ lost), len(lost) / max(len(lost) - 1, 1)
    error_lost = math.sqrt(several * float(np.square(shares * (lost - mean_lost)).sum()))
    precisions = np.square(step.singular) + ridge * problem.information
    unknown = ridge * problem.information + (_LEAST_SINGULAR * step.singular.max()) ** 2
    return Quadratic(
        link=problem.link,
        constant=problem.offset + float(coefficients[0]),
        linear=coefficients[1 : 1 + dimensions],
        curvature=(curvature + curvature.T) / 2,
        ridge=ridge,
        misfit=found.misfit,
        r2=_explained(float(shares @ np.square(problem.apart(found.coefficients))), total),
        left_out=found.left_out,
        r2_left_out=_explained(mean_lost, total),
        r2_error=error_lost / total if total > 0 else 0.0,
        error_left_out=math.sqrt(mean_lost),
        _told=_Told(
            problem.basis @ step.right,
            precisions,
            unknown if len(step.singular) < count else 0.0,
            float(problem.variances(found.misfit).min()),
        ),
    )


def _explained(lost: float, total: float) -> float:
    """Return the share of a variance that is not lost; of values that are all equal nothing is to explain."""
    return 1 - lost / total if total > 0 else 1.0


def _dimensions(terms: int) -> int:
    return (math.isqrt(8 * terms + 1) - 3) // 2
