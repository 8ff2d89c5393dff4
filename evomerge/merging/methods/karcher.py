"""Karcher mean: the point of a sphere whose distances to the models' directions are smallest.

Karcher 1977, "Riemannian center of mass and mollifier smoothing", https://doi.org/10.1002/cpa.3160300502, on each
weight tensor as one vector of unit length, times the models' mean length, as in mergekit's `karcher`. All models count
alike; a base named by the recipe is one of them.

The mean stays a weighted sum of the models on its way, so the iteration runs on the N weights and the models' scalar
products, which are prepared. A model opposite to the mean tells no direction and is passed over, as is one that
coincides with it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from evomerge.merging.inner_products import combined, norm, products
from evomerge.merging.method import Parameter, merge_method

MAX_ITER = Parameter(
    "max_iter",
    default=10,
    low=1,
    high=50,
    per_model=False,
    searchable=False,
    description="most steps towards the mean, a whole number",
    minimum=0.0,
)
TOL = Parameter(
    "tol",
    default=1e-5,
    low=1e-8,
    high=1e-3,
    per_model=False,
    searchable=False,
    description="angle (radians) below which a step is no step; a tensor shorter than this has no direction",
    minimum=0.0,
)


def shares(
    tensors: Sequence[torch.Tensor],
    base: torch.Tensor | None,
    *,
    prepared: Sequence[Sequence[float]],
    max_iter: float,
    tol: float,
) -> list[float]:
    """Return each model's share in the mean."""
    gram = torch.tensor(prepared, dtype=torch.float64)
    lengths = gram.diagonal().sqrt()
    valid = lengths > tol
    result = torch.zeros_like(lengths)
    if valid.any():
        cosines = gram[valid][:, valid] / torch.outer(lengths[valid], lengths[valid])
        result[valid] = mean_direction(cosines, int(max_iter), tol) / lengths[valid] * lengths.mean()
    return result.tolist()


@merge_method(
    "karcher",
    parameters=(MAX_ITER, TOL),
    summary="mean of the models' directions along the sphere, at their mean length",
    paper="Karcher 1977, https://doi.org/10.1002/cpa.3160300502",
    formula="mean(‖θᵢ‖) · argmin_{‖u‖=1} Σ ∠(u, θᵢ)²",
    needs_base=False,
    kind="elementwise",
    fused=True,
    prepare=products,
    reduce=shares,
)
def karcher(
    tensors: Sequence[torch.Tensor],
    base: torch.Tensor | None,
    *,
    reduced: Sequence[float],
    max_iter: float,
    tol: float,
) -> torch.Tensor:
    """Return the mean on the sphere, float32; a single model as it is."""
    return tensors[0] if len(tensors) == 1 else combined(tensors, None, reduced)


def mean_direction(cosines: torch.Tensor, max_iter: int, tol: float) -> torch.Tensor:
    """Return the Karcher mean of unit vectors as their weights in it.

    Args:
        cosines: (N, N), float64: the vectors' scalar products.
        max_iter: steps of gradient descent with step length 1.
        tol: a step shorter than this is the last.
    """

    def length(weights: torch.Tensor) -> float:
        return norm(float(weights @ cosines @ weights))

    count = len(cosines)
    mean = torch.full((count,), 1 / count, dtype=torch.float64)
    if length(mean) < max(tol, 1e-12):  # the directions cancel: start at the first
        mean = torch.zeros_like(mean)
        mean[0] = 1
    mean /= length(mean)
    for _ in range(max_iter):
        tangent = torch.zeros_like(mean)
        for index, dot in enumerate((cosines @ mean).clamp(-1, 1).tolist()):
            angle = math.acos(dot)
            if min(angle, math.pi - angle) < max(tol, 1e-7):
                continue
            pull = angle / math.sin(angle) / count  # the logarithm of the index-th vector at the mean
            tangent[index] += pull
            tangent -= pull * dot * mean
        step = length(tangent)
        if step < max(tol, 1e-12):
            break
        mean = math.cos(step) * mean + math.sin(step) / step * tangent
        mean /= length(mean)
    return mean
