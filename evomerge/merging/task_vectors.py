"""Steps that the methods on task vectors share: differences, sums, sign election, and their parameters.

Legend: δᵢ task vector of model i, wᵢ its weight, λ the factor on the merged task vector.

Precision: sums are float32 and the result is rounded once. Which entries survive a trim and which sign wins an
election is decided on values rounded to the dtype that the merge is computed for, as mergekit decides it: in bfloat16
equal magnitudes and cancelling sums are common, and what the choice changes is a whole entry of a task vector, not a
rounding error.

Speed: comparisons that make masks of truth values are several times slower than arithmetic on floats, so signs and
masks are computed with ``sign``, ``relu`` and their like.
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


def factors(weights: Sequence[float], normalize: bool, factor: float) -> list[float]:
    """Return λ wᵢ, divided by Σ wᵢ if ``normalize`` (and that is not zero)."""
    divisor = sum(weights) if normalize else 1.0
    scale = factor / divisor if abs(divisor) >= NO_DIVISOR else factor
    return [weight * scale for weight in weights]


def weighted_sum(
    base: torch.Tensor,
    vectors: Sequence[torch.Tensor],
    weights: Sequence[float],
    normalize: bool,
    factor: float,
) -> torch.Tensor:
    """Return θ₀ + λ Σ wᵢ δᵢ in float32, the sum divided by Σ wᵢ if ``normalize`` (and that is not zero)."""
    total = base.to(torch.float32, copy=True)
    for vector, scale in zip(vectors, factors(weights, normalize, factor), strict=True):
        if scale:
            total.add_(vector, alpha=scale)
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
    dtype = base.dtype
    weights = [float(torch.tensor(weight, dtype=dtype)) for weight in weights]
    terms = [vector.mul(weight).float() for vector, weight in zip(vectors, weights, strict=True)]
    winner = elected_sign(terms, dtype)
    first, *others = (term.mul_(winner).relu_() for term in terms)
    mixed = added([first, *others])
    if normalize:
        divisor = first.sign_().mul_(weights[0])
        for agreeing, weight in zip(others, weights[1:], strict=True):
            divisor.add_(agreeing.sign_(), alpha=weight)
        if min(weights) > 0:  # where it is 0, nothing agrees, and the sum is 0
            mixed.div_(divisor.clamp_min_(torch.finfo(torch.float32).tiny))
        else:
            mixed.div_(divisor.add_(divisor.sign().abs_().neg_().add_(1)))  # a divisor of 0 becomes 1
    return torch.addcmul(base.float(), mixed, winner, value=factor)


def elected_sign(terms: Sequence[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    """Return the sign of the sum of the terms (float32) at each entry, 1 for zero, as numbers of float32.

    Args:
        dtype: what the merge is computed for.
    """
    total = added(terms)
    if dtype == torch.float16:  # in which a sum may be too small to have a sign
        total = total.to(dtype).float()
    return torch.copysign(torch.ones_like(total), total.add_(0.0))  # −0 becomes 0


def added(terms: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the sum of at least one tensor, a new one."""
    if len(terms) == 1:
        return terms[0].clone()
    total = terms[0] + terms[1]
    for term in terms[2:]:
        total.add_(term)
    return total
