"""MagMax: for each entry, the task vector that moved it furthest.

Marczak et al. 2024, "MagMax: leveraging model merging for seamless continual learning",
https://arxiv.org/abs/2407.06322. Reference: the authors' code and FusionBench's. Of equal magnitudes the later model's
is taken, as there. Weights, which the paper has not, scale the task vectors before they are compared.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from evomerge.merging.differences import optional_weight, sum_on, weighted_differences
from evomerge.merging.method import merge_method
from evomerge.merging.task_vectors import LAMBDA


@merge_method(
    "magmax",
    parameters=(optional_weight(), LAMBDA),
    summary="takes, for each entry, the task vector's number of largest magnitude",
    paper="Marczak et al. 2024, https://arxiv.org/abs/2407.06322",
    formula="θ₀ + λ wₖ δₖ,  k = argmaxᵢ |wᵢ δᵢ| for each entry",
    needs_base=True,
    kind="elementwise",
)
def magmax(
    tensors: Sequence[torch.Tensor], base: torch.Tensor | None, *, weight: Sequence[float], lambda_: float
) -> torch.Tensor:
    """Return the base plus λ times the task vectors' entries of largest magnitude, float32."""
    vectors = weighted_differences(tensors, base, weight)
    furthest = next(vectors)
    for vector in vectors:
        # 1 where the vector's magnitude is as large or larger, else 0: much faster than a mask of truth values.
        taken = vector.abs().sub_(furthest.abs()).sign_().add_(0.5).sign_().relu_()
        furthest.addcmul_(furthest, taken, value=-1).addcmul_(vector, taken)
    return sum_on(base, [furthest], [1.0], lambda_)
