"""Model Breadcrumbs: of each task vector, leave out the largest entries and the smallest, and sum what is left.

Davari and Belilovsky 2024, "Model Breadcrumbs: scaling multi-task model merging with sparse masks",
https://arxiv.org/abs/2312.06795. Numbers of entries as in mergekit, by tensor: ⌊density · n⌋ are kept, ⌊gamma · n⌋ of
the largest are left out, or fewer where less is left to leave out; density 1 keeps all.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from evomerge.merging.magnitudes import Order, Trim, keep_between, magnitude_orders, trimmed
from evomerge.merging.method import Parameter, merge_method, switch
from evomerge.merging.methods.ties import norm_ratio
from evomerge.merging.task_vectors import (
    DENSITY,
    LAMBDA,
    WEIGHT,
    elected_sum,
    normalize_switch,
    required,
    task_vectors,
    weighted_sum,
)

GAMMA = Parameter(
    "gamma",
    default=0.01,
    low=0.0,
    high=0.1,
    per_model=True,
    searchable=True,
    description="share of the task vector's entries, the largest, that are left out",
    minimum=0.0,
    maximum=1.0,
)
RESCALE = switch("rescale", False, "scale thinned task vectors back to their L1 norm")
_PARAMETERS = (WEIGHT, DENSITY, GAMMA, LAMBDA, normalize_switch(False), RESCALE)
_PAPER = "Davari and Belilovsky 2024, https://arxiv.org/abs/2312.06795"
_COST = "two passes over the parents, a third if rescaled"


def orders(tensors: Sequence[torch.Tensor], base: torch.Tensor | None) -> list[Order]:
    """Return the order of magnitudes of each task vector."""
    return magnitude_orders(tensors, required(base), rising=True)


def cuts(
    tensors: Sequence[torch.Tensor],
    base: torch.Tensor | None,
    *,
    prepared: Sequence[Order],
    density: Sequence[float],
    gamma: Sequence[float],
    rescale: bool,
) -> list[tuple[Trim, float]]:
    """Return which entries of each task vector to keep, and the factor that restores its L1 norm."""
    start = required(base)
    trims = [_between(start, *each) for each in zip(tensors, prepared, density, gamma, strict=True)]
    return [
        (trim, norm_ratio(tensor, start, trim) if rescale else 1.0) for tensor, trim in zip(tensors, trims, strict=True)
    ]


def _between(base: torch.Tensor, tensor: torch.Tensor, order: Order, density: float, gamma: float) -> Trim:
    if density >= 1:
        return None
    size = base.numel()
    kept = int(max(0.0, density) * size)
    return keep_between(tensor, base, order, min(int(gamma * size), size - kept), kept)


@merge_method(
    "breadcrumbs",
    parameters=_PARAMETERS,
    summary="sums task vectors without their largest and their smallest entries",
    paper=_PAPER,
    formula="θ₀ + λ Σ wᵢ δ̂ᵢ,  δ̂ᵢ = the entries of δᵢ whose rank of magnitude, from the largest, lies in [γn, (γ+d)n)",
    needs_base=True,
    kind="elementwise",
    prepare=orders,
    reduce=cuts,
    cost=_COST,
    ignored=("int8_mask",),
)
def breadcrumbs(
    tensors: Sequence[torch.Tensor],
    base: torch.Tensor | None,
    *,
    reduced: Sequence[tuple[Trim, float]],
    weight: Sequence[float],
    density: Sequence[float],
    gamma: Sequence[float],
    lambda_: float,
    normalize: bool,
    rescale: bool,
) -> torch.Tensor:
    """Return the base plus λ times the weighted sum of the thinned task vectors, float32."""
    return weighted_sum(required(base), _thinned(tensors, base, reduced), weight, normalize, lambda_)


@merge_method(
    "breadcrumbs_ties",
    parameters=_PARAMETERS,
    summary="thins task vectors as breadcrumbs does, then elects signs as TIES does",
    paper=_PAPER,
    formula="θ₀ + λ Σ_{i∈A} wᵢ δ̂ᵢ,  δ̂ᵢ as in breadcrumbs,  A as in ties",
    needs_base=True,
    kind="elementwise",
    prepare=orders,
    reduce=cuts,
    cost=_COST,
    ignored=("int8_mask",),
)
def breadcrumbs_ties(
    tensors: Sequence[torch.Tensor],
    base: torch.Tensor | None,
    *,
    reduced: Sequence[tuple[Trim, float]],
    weight: Sequence[float],
    density: Sequence[float],
    gamma: Sequence[float],
    lambda_: float,
    normalize: bool,
    rescale: bool,
) -> torch.Tensor:
    """Return the base plus λ times the sign-elected sum of the thinned task vectors, float32."""
    return elected_sum(required(base), _thinned(tensors, base, reduced), weight, normalize, lambda_)


def _thinned(
    tensors: Sequence[torch.Tensor], base: torch.Tensor | None, cuts: Sequence[tuple[Trim, float]]
) -> list[torch.Tensor]:
    kept = [trimmed(vector, trim) for vector, (trim, _) in zip(task_vectors(tensors, base), cuts, strict=True)]
    return [vector if scale == 1 else vector * scale for vector, (_, scale) in zip(kept, cuts, strict=True)]
