"""Sums of task vectors.

Ilharco et al. 2023, "Editing models with task arithmetic", https://arxiv.org/abs/2212.04089.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from evomerge.merging.method import merge_method
from evomerge.merging.task_vectors import (
    LAMBDA,
    WEIGHT,
    normalize_switch,
    required,
    task_vectors,
    weighted_sum,
)


@merge_method(
    "task_arithmetic",
    parameters=(WEIGHT, LAMBDA, normalize_switch(False)),
    summary="the base plus a weighted sum of task vectors",
    paper="Ilharco et al. 2023, https://arxiv.org/abs/2212.04089",
    formula="θ₀ + λ Σ wᵢ δᵢ,  δᵢ = θᵢ − θ₀",
    needs_base=True,
    kind="elementwise",
    prepare=task_vectors,
    ignored=("density", "rescale", "int8_mask"),
)
def task_arithmetic(
    tensors: Sequence[torch.Tensor],
    base: torch.Tensor | None,
    *,
    prepared: Sequence[torch.Tensor],
    weight: Sequence[float],
    lambda_: float,
    normalize: bool,
) -> torch.Tensor:
    """Return θ₀ + λ Σ wᵢ δᵢ, float32."""
    return weighted_sum(required(base), prepared, weight, normalize, lambda_)
