"""Several abilities at once: the multidimensional 2PL, with a Gaussian for each model's posterior.

The evidence lower bound (ELBO) is raised by turns in the posteriors and in the items, both by Newton steps on exact
Gaussian expectations, which are one-dimensional for each response (as in Cho et al. 2021,
https://doi.org/10.1111/bmsp.12219, without their further bound on the sigmoid). After each turn the abilities are
rescaled to N(0, I) (Liu, Rubin and Wu 1998: parameter-expanded EM), without which scales would move slowly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from evomerge.errors import ConfigError, Problem
from evomerge.fitness.irt.bank import Array, ItemParameters

SLOPE_SCALE, INTERCEPT_SCALE = 1.5, 3.0  # standard deviations of the priors, which are centred on 0
_NODES = 7  # of Gauss and Hermite: errors below 1e-4 at the posteriors' usual widths
_CHUNK = 1 << 17  # responses handled at once
_STEP = 2.0  # no Newton step is longer: far from the optimum the curvature says little


@dataclass
class _State:
    slopes: Tensor  # (items, dimensions)
    intercepts: Tensor  # (items,)
    means: Tensor  # (models, dimensions)
    covariances: Tensor  # (models, dimensions, dimensions)


@dataclass(frozen=True)
class _Data:
    """Responses with 0 where missing, and 1 where seen."""

    values: Tensor
    seen: Tensor

    @classmethod
    def of(cls, responses: Array, device: str) -> _Data:
        values = torch.as_tensor(responses, dtype=torch.float64, device=device)
        return cls(values.nan_to_num(), (~values.isnan()).double())

    def chunks(self) -> list[slice]:
        models, items = self.values.shape
        size = max(1, _CHUNK // max(items, 1))
        return [slice(first, first + size) for first in range(0, models, size)]


@dataclass(frozen=True, eq=False)
class VariationalFit:
    """What was found.

    Attributes:
        parameters: of the items.
        means: float64 (models, dimensions), of the models' posteriors.
        covariances: float64 (models, dimensions, dimensions), the same.
        bound: the ELBO, at most the marginal log-likelihood.
        turns: how many it took.
        converged: whether it came to rest.
    """

    parameters: ItemParameters
    means: Array
    covariances: Array
    bound: float
    turns: int
    converged: bool


def fit(
    responses: Array, dimensions: int, *, device: str = "cpu", turns: int = 200, tolerance: float = 1e-3
) -> VariationalFit:
    """Fit a multidimensional 2PL by variational MAP. Deterministic: it starts from principal components.

    Dimensions come ordered by how much of the logits they explain, each with slopes that are positive on balance.

    Args:
        responses: (models, items) in [0, 1]; NaN where missing.
        dimensions: of the abilities.
        device: where to compute.
        turns: at most.
        tolerance: stop when slopes and intercepts change by less than this share of their size (root mean square).
    """
    data = _Data.of(responses, device)
    state = _start(data, dimensions)
    turn, converged = 0, False
    while turn < turns and not converged:
        before = torch.cat([state.slopes, state.intercepts[:, None]], 1)
        _update_posteriors(state, data)
        _update_items(state, data)
        _rescale(state)
        _orient(state)
        after = torch.cat([state.slopes, state.intercepts[:, None]], 1)
        converged = bool((after - before).square().mean() <= tolerance**2 * after.square().mean())
        turn += 1
    _settle(state, data)
    parameters = ItemParameters.logistic(state.slopes.cpu().numpy(), state.intercepts.cpu().numpy())
    posteriors = state.means.cpu().numpy(), state.covariances.cpu().numpy()
    return VariationalFit(parameters, *posteriors, _bound(state, data), turn, converged)


def gaussian_posteriors(parameters: ItemParameters, responses: Array, device: str = "cpu") -> tuple[Array, Array]:
    """Return the means (models, dimensions) and covariances of the best Gaussian posteriors.

    Args:
        parameters: without guessing and slips.
        responses: (models, items) in [0, 1]; NaN where missing.

    Raises:
        ConfigError: the parameters have lower or upper asymptotes.
    """
    if parameters.lower.any() or (parameters.upper != 1).any():
        raise ConfigError(Problem("guessing and slips are only known to models of one dimension"))
    data = _Data.of(responses, device)
    slopes = torch.as_tensor(parameters.slopes, device=device)
    intercepts = torch.as_tensor(parameters.intercepts, device=device)
    state = _State(slopes, intercepts, *_prior(len(responses), parameters.dimensions, device))
    _settle(state, data)
    return state.means.cpu().numpy(), state.covariances.cpu().numpy()


def predict(parameters: ItemParameters, means: Array, covariances: Array) -> Array:
    """Return the probability of success of each model at each item, the posterior integrated out: (models, items)."""
    state = _State(*(torch.as_tensor(x) for x in (parameters.slopes, parameters.intercepts, means, covariances)))
    found = [_expectations(*_logits(state, part))[0] for part in torch.arange(len(means)).split(1024)]
    probabilities: Array = torch.cat(found).numpy()
    return probabilities


def _prior(models: int, dimensions: int, device: str | torch.device) -> tuple[Tensor, Tensor]:
    unit = torch.eye(dimensions, dtype=torch.float64, device=device)
    return torch.zeros(models, dimensions, dtype=torch.float64, device=device), unit.repeat(models, 1, 1)


def _start(data: _Data, dimensions: int) -> _State:
    """Start from the principal components of the items' correlations, read as loadings of a normal ogive."""
    count = data.seen.sum(0).clamp(min=1)
    mean = (data.values.sum(0) / count).clamp(1e-3, 1 - 1e-3)
    centred = (data.values - mean) * data.seen
    scale = (centred.square().sum(0) / count).sqrt().clamp(min=1e-6)
    standard = centred / scale
    pairs = (data.seen.T @ data.seen).clamp(min=1)
    values, vectors = torch.linalg.eigh(standard.T @ standard / pairs)
    loadings = vectors[:, -dimensions:] * values[-dimensions:].clamp(min=1e-3).sqrt()
    loadings = loadings * (0.9 / loadings.norm(dim=1, keepdim=True).clamp(min=0.9))
    unique = (1 - loadings.square().sum(1)).sqrt()
    slopes = 1.7 * loadings / unique[:, None]
    intercepts = torch.special.ndtri(mean) * 1.7 / unique
    state = _State(slopes, intercepts, *_prior(len(data.values), dimensions, data.values.device))
    _orient(state)
    return state


def _logits(state: _State, rows: slice | Tensor) -> tuple[Tensor, Tensor]:
    """Return the means and standard deviations of the logits of some models, (models, items)."""
    means, covariances = state.means[rows], state.covariances[rows]
    outer = state.slopes[:, :, None] * state.slopes[:, None, :]
    variances = covariances.flatten(1) @ outer.flatten(1).T
    return means @ state.slopes.T + state.intercepts, variances.clamp(min=0).sqrt()


def _hermite() -> list[tuple[float, float]]:
    nodes, weights = np.polynomial.hermite_e.hermegauss(_NODES)
    return list(zip(nodes.tolist(), (weights / math.sqrt(2 * math.pi)).tolist(), strict=True))


def _expectations(mean: Tensor, deviation: Tensor) -> tuple[Tensor, Tensor]:
    """Return E sigmoid(z) and E sigmoid'(z) for z ~ N(mean, deviation²)."""
    first, second = torch.zeros_like(mean), torch.zeros_like(mean)
    for node, weight in _hermite():
        p = torch.sigmoid(mean + node * deviation)
        first += weight * p
        second += weight * p * (1 - p)
    return first, second


def _limited(step: Tensor) -> Tensor:
    return step * (_STEP / step.norm(dim=-1, keepdim=True).clamp(min=_STEP))


def _update_posteriors(state: _State, data: _Data) -> float:
    """Take one Newton step in every model's posterior; returns the longest change of a mean."""
    dimensions = state.slopes.shape[1]
    outer = (state.slopes[:, :, None] * state.slopes[:, None, :]).flatten(1)
    unit = torch.eye(dimensions, dtype=torch.float64, device=state.slopes.device)
    longest = 0.0
    for rows in data.chunks():
        expected, curvature = _expectations(*_logits(state, rows))
        seen = data.seen[rows]
        gradient = (data.values[rows] - expected * seen) @ state.slopes - state.means[rows]
        precision = ((curvature * seen) @ outer).unflatten(1, (dimensions, dimensions)) + unit
        covariances = torch.cholesky_inverse(torch.linalg.cholesky(precision))
        step = _limited((covariances @ gradient[:, :, None])[:, :, 0])
        state.means[rows] += step
        state.covariances[rows] = covariances
        longest = max(longest, float(step.norm(dim=1).max()))
    return longest


def _settle(state: _State, data: _Data, turns: int = 50, tolerance: float = 1e-6) -> None:
    """Bring the posteriors to their optimum for the items as they are."""
    for _ in range(turns):
        if _update_posteriors(state, data) < tolerance:
            break


def _update_items(state: _State, data: _Data) -> None:
    """Take one Newton step in every item's slopes and intercept."""
    items, dimensions = state.slopes.shape
    device = state.slopes.device
    gradient = torch.zeros(items, dimensions + 1, dtype=torch.float64, device=device)
    spread = torch.zeros(items, dimensions**2, dtype=torch.float64, device=device)  # Σ curvature × covariance
    square = torch.zeros(items, (dimensions + 1) ** 2, dtype=torch.float64, device=device)
    for rows in data.chunks():
        expected, curvature = _expectations(*_logits(state, rows))
        seen = data.seen[rows]
        weights = (curvature * seen).T
        design = torch.nn.functional.pad(state.means[rows], (0, 1), value=1.0)
        gradient += (data.values[rows] - expected * seen).T @ design
        spread += weights @ state.covariances[rows].flatten(1)
        square += weights @ (design[:, :, None] * design[:, None, :]).flatten(1)
    within = spread.unflatten(1, (dimensions, dimensions))
    gradient[:, :-1] -= (within @ state.slopes[:, :, None])[:, :, 0]
    hessian = square.unflatten(1, (dimensions + 1, dimensions + 1))
    hessian[:, :-1, :-1] += within
    precision = torch.full((dimensions + 1,), SLOPE_SCALE**-2, dtype=torch.float64, device=device)
    precision[-1] = INTERCEPT_SCALE**-2
    gradient -= torch.cat([state.slopes, state.intercepts[:, None]], 1) * precision
    step = _limited(torch.linalg.solve(hessian + precision.diag(), gradient))
    state.slopes = state.slopes + step[:, :-1]
    state.intercepts = state.intercepts + step[:, -1]


def _rescale(state: _State) -> None:
    """Give the abilities, all models' posteriors together, mean 0 and covariance I; no logit changes."""
    middle = state.means.mean(0)
    centred = state.means - middle
    covariance = centred.T @ centred / len(centred) + state.covariances.mean(0)
    root = torch.linalg.cholesky(covariance)
    inverse = torch.linalg.inv(root)
    state.intercepts = state.intercepts + state.slopes @ middle
    state.slopes = state.slopes @ root
    state.means = centred @ inverse.T
    state.covariances = inverse @ state.covariances @ inverse.T


def _orient(state: _State) -> None:
    """Turn the abilities so that dimensions come by what they explain, with slopes positive on balance."""
    _, _, turn = torch.linalg.svd(state.slopes, full_matrices=False)
    turn = turn.T * torch.where((state.slopes @ turn.T).sum(0) < 0, -1.0, 1.0)
    state.slopes = state.slopes @ turn
    state.means = state.means @ turn
    state.covariances = turn.T @ state.covariances @ turn


def _bound(state: _State, data: _Data) -> float:
    """Return the ELBO: E log p(responses | θ) less the divergence of the posteriors from N(0, I)."""
    total = 0.0
    for rows in data.chunks():
        mean, deviation = _logits(state, rows)
        seen, values = data.seen[rows], data.values[rows]
        total += float((values * mean).sum())
        for node, weight in _hermite():
            total -= weight * float((seen * torch.nn.functional.softplus(mean + node * deviation)).sum())
    trace = state.covariances.diagonal(dim1=1, dim2=2).sum(1)
    divergence = trace + state.means.square().sum(1) - state.means.shape[1] - torch.logdet(state.covariances)
    return total - 0.5 * float(divergence.sum())
