"""Sums of task vectors.

Ilharco et al. 2023, "Editing models with task arithmetic", https://arxiv.org/abs/2212.04089.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from evomerge.merging.method import merge_method
from evomerge.merging.sums import weighted
from evomerge.merging.task_vectors import (
    LAMBDA,
    WEIGHT,
    factors,
    normalize_switch,
    required,
)


@merge_method(
    "task_arithmetic",
    parameters=(WEIGHT, LAMBDA, normalize_switch(False)),
    summary="the base plus a weighted sum of task vectors",
    paper="Ilharco et al. 2023, https://arxiv.org/abs/2212.04089",
    formula="θ₀ + λ Σ wᵢ δᵢ,  δᵢ = θᵢ − θ₀",
    needs_base=True,
    kind="elementwise",
    fused=True,
    ignored=("density", "rescale", "int8_mask"),
)
def task_arithmetic(
    tensors: Sequence[torch.Tensor],
    base: torch.Tensor | None,
    *,
    weight: Sequence[float],
    lambda_: float,
    normalize: bool,
) -> torch.Tensor:
    """Return θ₀ + λ Σ wᵢ δᵢ, float32, computed as (1 − λ Σ wᵢ) θ₀ + λ Σ wᵢ θᵢ."""
    scales = factors(weight, normalize, lambda_)
    return weighted([required(base), *tensors], [1 - sum(scales), *scales])
