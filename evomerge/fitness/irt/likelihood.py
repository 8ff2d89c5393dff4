"""The likelihood of responses under given item parameters, and the abilities that follow from it.

One ability is integrated over a grid; several are approximated by a Gaussian each (:mod:`.variational`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from evomerge.errors import ConfigError, Problem
from evomerge.fitness.irt.bank import Array, ItemParameters
from evomerge.fitness.irt.variational import gaussian_posteriors

POINTS, LIMIT = 61, 6.0


@dataclass(frozen=True, eq=False)
class Abilities:
    """What responses say of the abilities of models.

    Attributes:
        means: float64 (models, dimensions), the expectations a posteriori (EAP).
        covariances: float64 (models, dimensions, dimensions), of the posteriors.
    """

    means: Array
    covariances: Array

    @property
    def standard_errors(self) -> Array:
        """The posteriors' standard deviations, float64 (models, dimensions)."""
        variances: Array = np.diagonal(self.covariances, axis1=1, axis2=2)
        return np.sqrt(variances)


def quadrature(device: str | torch.device = "cpu") -> tuple[Tensor, Tensor]:
    """Return 61 abilities on [-6, 6] and the logarithms of their N(0, 1) weights, which sum to 1: each (61,)."""
    nodes = torch.linspace(-LIMIT, LIMIT, POINTS, dtype=torch.float64, device=device)
    return nodes, torch.log_softmax(-nodes.square() / 2, 0)


def log_probabilities(parameters: ItemParameters, nodes: Tensor) -> tuple[Tensor, Tensor]:
    """Return log P(correct) and log P(wrong), each (items, points), at abilities (points,) of one dimension.

    Both are finite whatever the logit, as no probability is rounded to 0 or 1 on the way.
    """
    slopes, intercepts, lower, upper = (
        torch.as_tensor(array, device=nodes.device)
        for array in (parameters.slopes[:, 0], parameters.intercepts, parameters.lower, parameters.upper)
    )
    logits = slopes[:, None] * nodes + intercepts[:, None]
    span = (upper - lower).log()[:, None]
    right = torch.logaddexp(lower.log()[:, None], span + torch.nn.functional.logsigmoid(logits))
    wrong = torch.logaddexp((1 - upper).log()[:, None], span + torch.nn.functional.logsigmoid(-logits))
    return right, wrong


def log_joint(parameters: ItemParameters, responses: Array | Tensor) -> Tensor:
    """Return log p(responses, θ) at the grid's points, (models, points); a missing response says nothing.

    Graded responses x count as x of a success and 1 - x of a failure.

    Args:
        parameters: of one dimension.
        responses: (models, items) in [0, 1]; NaN where missing.
    """
    if parameters.dimensions != 1:
        what = f"{parameters.dimensions} dimensions cannot be integrated over a grid of one"
        raise ConfigError(Problem(what, suggestion="calibrate with --dimensions 1"))
    values = torch.as_tensor(responses, dtype=torch.float64)
    seen = ~values.isnan()
    nodes, weights = quadrature(values.device)
    right, wrong = log_probabilities(parameters, nodes)
    successes = values.nan_to_num()
    return successes @ right + (seen.double() - successes) @ wrong + weights


def marginal_log_likelihood(parameters: ItemParameters, responses: Array) -> float:
    """Return Σ over models of log ∫ p(responses | θ) N(θ; 0, 1) dθ, by quadrature.

    Args:
        parameters: of one dimension.
        responses: (models, items) in [0, 1]; NaN where missing.

    Raises:
        ConfigError: the parameters have several dimensions.
    """
    return float(log_joint(parameters, responses).logsumexp(1).sum())


def abilities(parameters: ItemParameters, responses: Array) -> Abilities:
    """Return the EAP abilities of models and the covariances of their posteriors.

    Args:
        parameters: of one dimension; or of several, without guessing and slips.
        responses: (models, items) in [0, 1]; NaN where missing. A model without responses has N(0, I).
    """
    if parameters.dimensions > 1:
        return Abilities(*gaussian_posteriors(parameters, responses))
    nodes, _ = quadrature()
    posterior = log_joint(parameters, responses).softmax(1)
    means = posterior @ nodes
    variances = (posterior * (nodes - means[:, None]).square()).sum(1)
    return Abilities(means[:, None].numpy(), variances[:, None, None].numpy())


def sum_score_abilities(parameters: ItemParameters) -> tuple[Array, Array]:
    """Return the EAP ability and its standard error for each number of right answers to all items, (items + 1,) each.

    What some programs report (EAPsum) where only a model's total is known; it says less than the pattern of its
    responses. By the recursion of Lord and Wingersky (1984).

    Args:
        parameters: of one dimension.
    """
    nodes, weights = quadrature()
    right, wrong = (part.exp() for part in log_probabilities(parameters, nodes))
    likelihood = torch.zeros(len(parameters) + 1, POINTS, dtype=torch.float64)
    likelihood[0] = 1
    for item in range(len(parameters)):
        gained = likelihood[:-1] * right[item]
        likelihood *= wrong[item]
        likelihood[1:] += gained
    posterior = likelihood * weights.exp()
    posterior /= posterior.sum(1, keepdim=True)
    means = posterior @ nodes
    variances = (posterior * (nodes - means[:, None]).square()).sum(1)
    return means.numpy(), variances.sqrt().numpy()
