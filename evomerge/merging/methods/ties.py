"""TIES: trim task vectors, elect a sign for each entry, average those that agree.

Yadav et al. 2023, "TIES-Merging: resolving interference when merging models",
https://arxiv.org/abs/2306.01708. Differences from the paper, as in mergekit: a density and a weight for each
model, and the mass of a sign counts the weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from evomerge.merging import fused
from evomerge.merging.chunks import over_chunks
from evomerge.merging.magnitudes import Above, Order, Trim, magnitude_orders, trimmed, trims
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


def orders(tensors: Sequence[torch.Tensor], base: torch.Tensor | None) -> list[Order]:
    """Return the order of magnitudes of each task vector: with it, trimming to any density is one comparison."""
    return magnitude_orders(tensors, required(base))


def cuts(
    tensors: Sequence[torch.Tensor],
    base: torch.Tensor | None,
    *,
    prepared: Sequence[Order],
    density: Sequence[float],
    rescale: bool,
) -> list[tuple[Trim, float]]:
    """Return how to trim each task vector, and the factor that restores its L1 norm (1 unless ``rescale``)."""
    start = required(base)
    trimmings = trims(tensors, start, prepared, density)
    return [
        (trim, norm_ratio(tensor, start, trim) if rescale else 1.0)
        for tensor, trim in zip(tensors, trimmings, strict=True)
    ]


def norm_ratio(tensor: torch.Tensor, base: torch.Tensor, trim: Trim) -> float:
    """Return ‖δ‖₁ / ‖trimmed δ‖₁; 1 if either norm is almost zero.

    Norms and factor are rounded to the vectors' dtype, as mergekit computes them, unless they overflow it.
    They are summed in float64, so that the number of threads cannot change them.
    """

    def sums(start: int, stop: int) -> torch.Tensor:
        vector = tensor[start:stop] - base[start:stop]
        part = None if trim is None else trim.cut(start, stop)
        return torch.stack([v.double().abs().sum() for v in (vector, trimmed(vector, part))])

    exact = torch.stack(over_chunks(sums, tensor.numel(), tensor.device)).sum(0)
    if exact.min() < NO_NORM:
        return 1.0
    before, after = exact.to(tensor.dtype)
    factor = before / after
    return float(factor if torch.isfinite(factor) else exact[0] / exact[1])


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
    kind="elementwise",
    fused=True,
    prepare=orders,
    reduce=cuts,
    cost="two passes over the parents, a third if rescaled",
    ignored=("int8_mask",),
)
def ties(
    tensors: Sequence[torch.Tensor],
    base: torch.Tensor | None,
    *,
    reduced: Sequence[tuple[Trim, float]],
    weight: Sequence[float],
    density: Sequence[float],
    lambda_: float,
    normalize: bool,
    rescale: bool,
) -> torch.Tensor:
    """Return the base plus λ times the disjoint mean of the trimmed task vectors, float32."""
    start = required(base)
    if fused.fits(start):
        cuts = [_cut(start.device, *each) for each in reduced]
        merged = fused.elected(start, tensors, cuts, weight, normalize, lambda_)
        if merged is not None:
            return merged
    vectors = [trimmed(vector, trim) for vector, (trim, _) in zip(task_vectors(tensors, start), reduced, strict=True)]
    vectors = [vector if scale == 1 else vector * scale for vector, (_, scale) in zip(vectors, reduced, strict=True)]
    return elected_sum(start, vectors, weight, normalize, lambda_)


def _cut(device: torch.device, trim: Trim, scale: float) -> fused.Trimmed:
    if isinstance(trim, Above):
        return fused.trim(device, trim.below, trim.magnitude, trim.last, scale)
    return fused.trim(device, -1.0, -1.0, -1, scale)
