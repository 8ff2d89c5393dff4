"""Weighted sums of tensors, in one way for all methods."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from evomerge.merging import fused


def weighted(tensors: Sequence[torch.Tensor], scales: Sequence[float]) -> torch.Tensor:
    """Return Σ sᵢ θᵢ, a new tensor of float32, in which the sum is kept too; at least one tensor."""
    total = fused.weighted(tensors, scales) if fused.fits(tensors[0]) else None
    if total is None:
        total = tensors[0].float() * scales[0]
        for tensor, scale in zip(tensors[1:], scales[1:], strict=True):
            total.add_(tensor, alpha=scale)
    return total
