"""One ability: Rasch, 2PL and 3PL by marginal maximum a posteriori, the ability integrated over a grid.

Bock and Aitkin 1981 (https://doi.org/10.1007/BF02293801): the expectation step shares every model out among the grid's
points, the maximisation step is a regression for each item, by Fisher scoring. The abilities' mean and scale, which EM
moves slowly where tests are long, are set at each turn as in parameter-expanded EM, for as long as that helps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from evomerge.fitness.irt.bank import Array, ItemParameters
from evomerge.fitness.irt.likelihood import log_joint, quadrature

Model = Literal["rasch", "2pl", "3pl"]

# The priors, normal, of slope, intercept and logit of guessing: weak beside a few hundred models.
PRIOR_MEANS = (1.0, 0.0, -1.4)
PRIOR_SCALES = (3.0, 6.0, 0.7)
_SLOPE, _INTERCEPT, _GUESS = range(3)
_NEVER = -1e4  # the logit of a guessing probability that is 0
_SCORING_STEPS, _HALVINGS = 3, 6


@dataclass(frozen=True, eq=False)
class QuadratureFit:
    """The parameters found, the marginal log-likelihood (without priors) and the number of turns."""

    parameters: ItemParameters
    log_likelihood: float
    turns: int
    converged: bool


def fit(
    responses: Array, model: Model = "2pl", *, device: str = "cpu", turns: int = 500, tolerance: float = 1e-8
) -> QuadratureFit:
    """Fit a model of one ability by marginal MAP. Deterministic. The slopes are positive on balance.

    Args:
        responses: (models, items) in [0, 1]; NaN where missing.
        model: ``rasch`` has one slope for all items, ``3pl`` a guessing probability for each.
        device: where to compute.
        turns: at most.
        tolerance: stop when a turn raises the log posterior by less than this for each response.
    """
    values = torch.as_tensor(responses, dtype=torch.float64, device=device)
    seen = (~values.isnan()).double()
    values = values.nan_to_num()
    enough = tolerance * float(seen.sum())
    current = _start(values, seen, model)
    posterior, likelihood = _expect(current, values, seen)
    height = likelihood + float(_log_prior(current, model).sum())
    expanding, turn, converged = True, 0, False
    while turn < turns and not converged:
        maximised = _maximise(current, seen.T @ posterior, values.T @ posterior, model)
        proposal = _rescaled(maximised, posterior) if expanding else maximised
        posterior, likelihood = _expect(proposal, values, seen)
        raised = likelihood + float(_log_prior(proposal, model).sum())
        if expanding and raised < height + enough:  # near the top the priors count, of which rescaling knows nothing
            expanding, proposal = False, maximised
            posterior, likelihood = _expect(proposal, values, seen)
            raised = likelihood + float(_log_prior(proposal, model).sum())
        converged = not expanding and raised < height + enough
        current, height, turn = proposal, raised, turn + 1
    if current[:, _SLOPE].sum() < 0:
        current[:, _SLOPE] = -current[:, _SLOPE]
    return QuadratureFit(_parameters(current), likelihood, turn, converged)


def _start(values: Tensor, seen: Tensor, model: Model) -> Tensor:
    """Return (items, 3): slopes by the correlation of items with the models' totals, intercepts by their means."""
    count = seen.sum(0).clamp(min=1)
    mean = values.sum(0) / count
    totals = ((values - mean) * seen).sum(1) / seen.sum(1).clamp(min=1)
    centred = (values - mean) * seen
    spread = (centred.square().sum(0) * (totals[:, None] * seen).square().sum(0)).sqrt().clamp(min=1e-9)
    correlation = (totals @ centred / spread).clamp(-0.9, 0.9)
    slopes = 1.7 * correlation / (1 - correlation.square()).sqrt()
    if model == "rasch":
        slopes = torch.full_like(slopes, max(float(slopes.mean()), 0.5))
    share = (values.sum(0) + 0.5) / (count + 1)
    start = torch.stack(
        [slopes, share.logit() * (1 + slopes.square() / 2.9).sqrt(), torch.full_like(slopes, _NEVER)], 1
    )
    if model == "3pl":
        start[:, _GUESS] = PRIOR_MEANS[_GUESS]
    return start


def _parameters(current: Tensor) -> ItemParameters:
    array = current.cpu().numpy()
    lower = current[:, _GUESS].sigmoid().cpu().numpy()
    return ItemParameters.logistic(array[:, :1].copy(), array[:, _INTERCEPT].copy(), lower)


def _expect(current: Tensor, values: Tensor, seen: Tensor) -> tuple[Tensor, float]:
    """Return the posteriors over the grid, (models, points), and the marginal log-likelihood."""
    joint = log_joint(_parameters(current), torch.where(seen > 0, values, torch.nan))
    total = joint.logsumexp(1)
    return (joint - total[:, None]).exp(), float(total.sum())


def _free(model: Model) -> list[int]:
    """Return which columns are estimated for each item by itself."""
    return {"rasch": [_INTERCEPT], "2pl": [_SLOPE, _INTERCEPT], "3pl": [_SLOPE, _INTERCEPT, _GUESS]}[model]


def _log_prior(current: Tensor, model: Model) -> Tensor:
    """Return the logarithm of each item's prior, (items,), up to a constant; a shared slope counts once."""
    mean, scale = (current.new_tensor(numbers) for numbers in (PRIOR_MEANS, PRIOR_SCALES))
    penalties = -((current - mean) / scale).square() / 2
    prior = penalties[:, _free(model)].sum(1)
    if model == "rasch":
        prior = prior + penalties[:, _SLOPE] / len(current)
    return prior


def _maximise(current: Tensor, trials: Tensor, successes: Tensor, model: Model) -> Tensor:
    """Return the items' parameters after some steps of Fisher scoring.

    Args:
        current: (items, 3).
        trials: (items, points), the number of models at each point.
        successes: (items, points), of theirs.
        model: which parameters are free.
    """
    free = _free(model)
    height = _expected(current, trials, successes) + _log_prior(current, model)
    for _ in range(_SCORING_STEPS):
        score, information = _scoring(current, trials, successes)
        score, information = score[:, free], information[:, free][:, :, free]
        current, height = _climb(
            current, torch.linalg.solve(information, score), free, height, trials, successes, model
        )
        if model == "rasch":
            score, information = _scoring(current, trials, successes, shared=len(current))
            step = (score[:, _SLOPE].sum() / information[:, _SLOPE, _SLOPE].sum()).expand(len(current), 1)
            moved = current.clone()
            moved[:, [_SLOPE]] += step
            raised = _expected(moved, trials, successes) + _log_prior(moved, model)
            if raised.sum() > height.sum():
                current, height = moved, raised
    return current


def _climb(
    current: Tensor,
    step: Tensor,
    free: list[int],
    height: Tensor,
    trials: Tensor,
    successes: Tensor,
    model: Model,
) -> tuple[Tensor, Tensor]:
    """Take each item's step, halved until it raises the item's expected log posterior, or not at all."""
    for _ in range(_HALVINGS):
        moved = current.clone()
        moved[:, free] += step
        raised = _expected(moved, trials, successes) + _log_prior(moved, model)
        better = raised >= height
        current = torch.where(better[:, None], moved, current)
        height = torch.where(better, raised, height)
        if better.all():
            break
        step = torch.where(better[:, None], 0.0, step / 2)
    return current, height


def _logs(current: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return log P, log(1 - P) and sigmoid(logit) at the grid's points, each (items, points)."""
    nodes, _ = quadrature(current.device)
    logits = current[:, _SLOPE, None] * nodes + current[:, _INTERCEPT, None]
    guess = current[:, _GUESS, None]
    alone = torch.nn.functional.logsigmoid
    right = torch.logaddexp(alone(guess), alone(-guess) + alone(logits))
    return right, alone(-guess) + alone(-logits), logits.sigmoid()


def _expected(current: Tensor, trials: Tensor, successes: Tensor) -> Tensor:
    right, wrong, _ = _logs(current)
    return (successes * right + (trials - successes) * wrong).sum(1)


def _scoring(current: Tensor, trials: Tensor, successes: Tensor, shared: int = 1) -> tuple[Tensor, Tensor]:
    """Return the gradient (items, 3) and the expected information (items, 3, 3) of the log posterior.

    ``shared``: among how many items the slope's prior is divided.
    """
    nodes, _ = quadrature(current.device)
    right, wrong, rise = _logs(current)
    p, guess = right.exp(), current[:, _GUESS, None].sigmoid()
    # With P = g + (1 - g) s: dP/dlogit = (1 - g) s (1 - s) and 1 - P = (1 - g)(1 - s), so the quotients stay finite.
    by_logit = rise / p.clamp(min=1e-300)  # dP/dlogit / (P (1 - P))
    by_guess = guess / p.clamp(min=1e-300)  # dP/dlogit(g) / (P (1 - P))
    residual = successes - trials * p
    basis = torch.stack([by_logit * nodes, by_logit, by_guess], 2)  # (items, points, 3)
    weight = trials * p * wrong.exp()
    score = (basis * residual[:, :, None]).sum(1)
    information = basis.transpose(1, 2) @ (basis * weight[:, :, None])
    mean, scale = (current.new_tensor(numbers) for numbers in (PRIOR_MEANS, PRIOR_SCALES))
    precision = scale**-2
    precision[_SLOPE] /= shared
    return score - precision * (current - mean), information + precision.diag()


def _rescaled(current: Tensor, posterior: Tensor) -> Tensor:
    """Return parameters for abilities rescaled so that all models' posteriors have mean 0 and variance 1 together."""
    nodes, _ = quadrature(posterior.device)
    share = posterior.mean(0)
    middle = share @ nodes
    spread = (share @ (nodes - middle).square()).sqrt()
    moved = current.clone()
    moved[:, _INTERCEPT] += moved[:, _SLOPE] * middle
    moved[:, _SLOPE] *= spread
    return moved
