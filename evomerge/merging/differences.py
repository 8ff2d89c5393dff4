"""Task vectors in float32, and the parameters of methods whose papers have one factor for the whole merge.

Singular vectors and comparisons across models see small differences between large numbers: rounding a difference to
half precision first, as the methods shared with mergekit do, would change them. In float32 the difference of two
numbers in half precision is exact but for the rarest cases.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from evomerge.merging.chunks import over_chunks
from evomerge.merging.method import Parameter
from evomerge.merging.task_vectors import LAMBDA, WEIGHT, required


def differences(tensors: Sequence[torch.Tensor], base: torch.Tensor | None) -> list[torch.Tensor]:
    """Return δᵢ = θᵢ − θ₀ in float32.

    Raises:
        MergeError: there is no base.
    """
    return list(weighted_differences(tensors, base, [1.0] * len(tensors)))


def weighted_differences(
    tensors: Sequence[torch.Tensor], base: torch.Tensor | None, weights: Sequence[float]
) -> Iterator[torch.Tensor]:
    """Yield wᵢ δᵢ in float32, one at a time: fresh memory costs more than computing them twice.

    Raises:
        MergeError: there is no base.
    """
    start = required(base)
    for tensor, weight in zip(tensors, weights, strict=True):
        vector = tensor.to(torch.float32, copy=True).sub_(start)
        yield vector if weight == 1 else vector.mul_(weight)


def sum_on(
    base: torch.Tensor | None, vectors: Sequence[torch.Tensor], weights: Sequence[float], factor: float
) -> torch.Tensor:
    """Return θ₀ + λ Σ wᵢ vᵢ in float32.

    Raises:
        MergeError: there is no base.
    """
    start = required(base).reshape(-1)
    terms = [(v.reshape(-1), w * factor) for v, w in zip(vectors, weights, strict=True) if w * factor]
    total = torch.empty_like(start, dtype=torch.float32)

    def add(first: int, last: int) -> None:
        part = total[first:last].copy_(start[first:last])
        for vector, share in terms:
            part.add_(vector[first:last], alpha=share)

    over_chunks(add, total.numel(), total.device)
    return total.reshape(required(base).shape)


def optional_weight(searchable: bool = True) -> Parameter:
    """Return ``weight`` with the default 1, at which a method does what its paper says."""
    return replace(WEIGHT, default=1.0, high=1.5, searchable=searchable, required=False)


def searched_lambda(low: float, high: float, default: float = 1.0) -> Parameter:
    """Return ``lambda`` as a gene, for methods of which it is the only number that costs nothing to change."""
    return replace(LAMBDA, default=default, low=low, high=high, searchable=True)
