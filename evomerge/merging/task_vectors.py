"""Steps that the methods on task vectors share: differences, trimming, sign election, sums, and their
parameters.

Legend: δᵢ task vector of model i, wᵢ its weight, λ the factor on the merged task vector.

Precision: task vectors are kept in the dtype that the merge is computed for, sums are float32, and the result
is rounded once. Which entries survive a trim and which sign wins an election is decided on values rounded to
that dtype, as mergekit decides it: in bfloat16 equal magnitudes and cancelling sums are common, and what the
choice changes is a whole entry of a task vector, not a rounding error.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from evomerge.errors import MergeError
from evomerge.merging.method import Parameter, switch

NO_DIVISOR = 1e-8  # a sum of weights smaller than this does not divide (mergekit's bound)
NO_NORM = 1e-7  # an L1 norm smaller than this is not rescaled (mergekit's bound)

WEIGHT = Parameter(
    "weight",
    default=0.5,
    low=0.0,
    high=1.0,
    per_model=True,
    searchable=True,
    description="factor on the model's task vector",
    required=True,
)
DENSITY = Parameter(
    "density",
    default=1.0,
    low=0.1,
    high=1.0,
    per_model=True,
    searchable=True,
    description="share of the task vector's entries that are kept",
    minimum=0.0,
    maximum=1.0,
)
LAMBDA = Parameter(
    "lambda",
    default=1.0,
    low=0.5,
    high=1.5,
    per_model=False,
    searchable=False,
    description="factor on the merged task vector",
)
NORMALIZE = "divide the weighted sum by the sum of the weights"


def normalize_switch(default: bool) -> Parameter:
    """Return the switch ``normalize``, whose default differs between methods."""
    return switch("normalize", default, NORMALIZE)


def task_vectors(tensors: Sequence[torch.Tensor], base: torch.Tensor | None) -> list[torch.Tensor]:
    """Return δᵢ = θᵢ − θ₀, each in the inputs' dtype.

    Raises:
        MergeError: there is no base.
    """
    base = required(base)
    return [tensor - base for tensor in tensors]


def required(base: torch.Tensor | None) -> torch.Tensor:
    """Return the base.

    Raises:
        MergeError: there is none.
    """
    if base is None:
        raise MergeError("task vectors are differences from a base model; name one as base_model")
    return base


def weighted_sum(
    base: torch.Tensor,
    vectors: Sequence[torch.Tensor],
    weights: Sequence[float],
    normalize: bool,
    factor: float,
) -> torch.Tensor:
    """Return θ₀ + λ Σ wᵢ δᵢ in float32, the sum divided by Σ wᵢ if ``normalize`` (and that is not zero)."""
    divisor = sum(weights) if normalize else 1.0
    scale = factor / divisor if abs(divisor) >= NO_DIVISOR else factor
    total = base.float().clone() if base.dtype == torch.float32 else base.float()
    for vector, weight in zip(vectors, weights, strict=True):
        if weight:
            total.add_(vector, alpha=weight * scale)
    return total


def elected_sum(
    base: torch.Tensor,
    vectors: Sequence[torch.Tensor],
    weights: Sequence[float],
    normalize: bool,
    factor: float,
) -> torch.Tensor:
    """Return θ₀ + λ times the disjoint mean of the wᵢ δᵢ, float32.

    The sign of Σ wᵢ δᵢ wins at each entry (zero counts as positive); the entries of that sign are summed and,
    if ``normalize``, divided by the sum of their weights (Yadav et al. 2023, Section 4, steps 2 and 3).
    """
    total = torch.zeros_like(base, dtype=torch.float32)
    terms = [vector * torch.tensor(weight, dtype=vector.dtype) for vector, weight in zip(vectors, weights, strict=True)]
    for term in terms:
        total += term
    winner = torch.ge(total.to(base.dtype), 0, out=torch.empty_like(total)).mul_(2).sub_(1)
    mixed, divisor, agrees = torch.zeros_like(total), torch.zeros_like(total), torch.empty_like(total)
    for vector, term, weight in zip(vectors, terms, weights, strict=True):
        torch.gt(term * winner, 0, out=agrees)
        if normalize:
            divisor.add_(agrees, alpha=weight)
        # In a narrow dtype the terms that decided are rounded; what is summed is not.
        mixed.add_(agrees.mul_(term) if term.dtype == torch.float32 else agrees.mul_(vector).mul_(weight))
    if normalize:
        mixed.div_(divisor.masked_fill_(divisor == 0, 1.0))
    return mixed.mul_(factor).add_(base)
