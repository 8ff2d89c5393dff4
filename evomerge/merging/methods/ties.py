"""TIES: trim task vectors, elect a sign for each entry, average those that agree.

Yadav et al. 2023, "TIES-Merging: resolving interference when merging models",
https://arxiv.org/abs/2306.01708. Differences from the paper, as in mergekit: a density and a weight for each
model, and the mass of a sign counts the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from evomerge.merging.method import merge_method, switch
from evomerge.merging.task_vectors import (
    DENSITY,
    LAMBDA,
    NO_NORM,
    WEIGHT,
    elected_sum,
    normalize_switch,
    required,
    task_vectors,
)


class RankedVector(NamedTuple):
    """A task vector and, for each entry, its place in the order of falling magnitude (0 = largest)."""

    vector: torch.Tensor
    rank: torch.Tensor


def ranked_vectors(tensors: Sequence[torch.Tensor], base: torch.Tensor | None) -> list[RankedVector]:
    """Return the task vectors with their ranks: with those, trimming to any density is one comparison."""
    return [RankedVector(vector, _rank(vector)) for vector in task_vectors(tensors, base)]


def _rank(vector: torch.Tensor) -> torch.Tensor:
    magnitudes = vector.abs().reshape(-1).float()
    # Not `stable`: equal magnitudes then fall in the order that mergekit, which sorts the same way, takes
    # them in.
    order = torch.argsort(magnitudes, descending=True)
    # Comparing floats is the faster; beyond 2^24 entries they could not count them.
    dtype = torch.float32 if order.numel() <= 1 << 24 else torch.int32
    rank = torch.empty(order.shape, dtype=dtype)
    rank[order] = torch.arange(order.numel(), dtype=dtype)
    return rank.reshape(vector.shape)


def trim(ranked: RankedVector, density: float) -> torch.Tensor:
    """Return the vector without all but its share ``density`` of largest entries; at least one if > 0."""
    vector, rank = ranked
    if density >= 1 or vector.numel() == 0:
        return vector
    kept = max(1, int(density * vector.numel())) if density > 0 else 0
    mask = torch.lt(rank, kept, out=torch.empty_like(vector))
    return mask.mul_(vector)


def rescaled(vector: torch.Tensor, trimmed: torch.Tensor) -> torch.Tensor:
    """Return ``trimmed`` scaled to the L1 norm of ``vector``; unchanged if either norm is almost zero.

    Norms and factor are rounded to the vectors' dtype, as mergekit computes them, unless they overflow it.
    They are summed in float64, so that the number of threads cannot change them.
    """
    exact = [v.double().abs().sum() for v in (vector, trimmed)]
    if min(exact) < NO_NORM:
        return trimmed
    before, after = (norm.to(vector.dtype) for norm in exact)
    factor = before / after
    return trimmed * (factor if torch.isfinite(factor) else float(exact[0] / exact[1]))


@merge_method(
    "ties",
    parameters=(
        WEIGHT,
        DENSITY,
        LAMBDA,
        normalize_switch(True),
        switch("rescale", False, "scale trimmed task vectors back to their L1 norm"),
    ),
    summary="trims task vectors, elects a sign per entry, averages the entries that agree",
    paper="Yadav et al. 2023, https://arxiv.org/abs/2306.01708",
    formula="θ₀ + λ Σ_{i∈A} wᵢ δ̂ᵢ / Σ_{i∈A} wᵢ,  A = {i : sign(wᵢ δ̂ᵢ) = sign(Σ wⱼ δ̂ⱼ)},  δ̂ = trimmed δ",
    needs_base=True,
    kind="tensor",
    prepare=ranked_vectors,
    ignored=("int8_mask",),
)
def ties(
    tensors: Sequence[torch.Tensor],
    base: torch.Tensor | None,
    *,
    prepared: Sequence[RankedVector],
    weight: Sequence[float],
    density: Sequence[float],
    lambda_: float,
    normalize: bool,
    rescale: bool,
) -> torch.Tensor:
    """Return the base plus λ times the disjoint mean of the trimmed task vectors, float32."""
    vectors = [trim(ranked, share) for ranked, share in zip(prepared, density, strict=True)]
    if rescale:
        vectors = [rescaled(ranked.vector, vector) for ranked, vector in zip(prepared, vectors, strict=True)]
    return elected_sum(required(base), vectors, weight, normalize, lambda_)
