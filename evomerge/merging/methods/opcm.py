"""OPCM: add the models one after the other, each without what lies along the directions merged so far.

Tang et al. 2025, "Merging models on the fly without retraining: a sequential approach to scalable continual model
merging", https://arxiv.org/abs/2501.09522. Reference: FusionBench's ``opcm``, by the same authors.

Let Aₜ be the sum so far, A₁ = δ₁. With the singular vectors of Aₜ₋₁, from the next task vector is taken its component
along each pair (uⱼ, vⱼ), and everything between the leading left and right vectors: those whose singular values sum
to the share ``alpha`` of all. What remains is added. The reference divides by a factor λₜ after each
step and multiplies by it before the next; as singular vectors do not depend on scale, only the last factor matters.
It gives the merged task vector the mean norm of the models' task vectors. The reference measures both norms over the
whole model; here, where a tensor is all that a method sees, they are the tensor's. With ``normalize: false`` the sum
is left as it is, and a ``lambda`` of mean norm over merged norm of the whole model gives the reference's numbers.

Other differences: directions of singular value zero count as no directions; weights, which the paper has not, scale
what a model adds. Which tensors are projected: matrices in the layers (each of a stack of experts on its own). The
reference projects linear layers wherever they stand, the head too, and no embeddings; here neither, as their shapes
do not tell them apart. Everything else is summed without projection.

What is prepared: what each model adds, for the default ``alpha``, in the models' dtype, and the task vectors' norms.
While ``alpha`` stays, a merge costs what task arithmetic costs; another ``alpha`` takes n − 1 SVDs in each merge.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from evomerge.merging.differences import differences, optional_weight, sum_on
from evomerge.merging.method import NOWHERE, Parameter, Place, merge_method, switch
from evomerge.merging.singular_vectors import is_matrix, on_matrices, svd
from evomerge.merging.state import state_class
from evomerge.merging.task_vectors import LAMBDA, required

ALPHA = Parameter(
    "alpha",
    default=0.5,
    low=0.1,
    high=0.9,
    per_model=False,
    searchable=False,
    description="share of the merged singular values whose directions later models may not touch",
    minimum=0.0,
    maximum=1.0,
)


@state_class
class Additions(NamedTuple):
    """What each model adds to the sum (None if its task vector, whole), and its task vector's norm."""

    parts: list[torch.Tensor] | None
    norms: list[float]


def additions(tensors: Sequence[torch.Tensor], base: torch.Tensor | None, place: Place = NOWHERE) -> Additions:
    """Return what each model adds for the default ``alpha``, in the tensors' dtype."""
    vectors = differences(tensors, base)
    norms = [_norm(vector) for vector in vectors]
    outside = bool(place.name) and place.layer is None
    if outside or not is_matrix(vectors[0]):
        return Additions(None, norms)
    return Additions([part.to(tensors[0].dtype) for part in cleaned(vectors, float(ALPHA.default))], norms)


@merge_method(
    "opcm",
    parameters=(
        optional_weight(),
        LAMBDA,
        ALPHA,
        switch("normalize", True, "give the merged task vector the mean norm of the models' task vectors"),
    ),
    summary="adds models in their order, each projected off the directions merged before",
    paper="Tang et al. 2025, https://arxiv.org/abs/2501.09522",
    formula="θ₀ + λ s Aₙ,  Aₜ = Aₜ₋₁ + wₜ P(δₜ; Aₜ₋₁),  A₁ = w₁ δ₁,  s = mean ‖wᵢδᵢ‖ / ‖Aₙ‖",
    needs_base=True,
    kind="matrix",
    ordered=True,
    prepare=additions,
    others="vectors, convolution kernels and what stands outside the layers are summed without projection",
    cost="two passes over prepared parts, one for each model; models − 1 SVDs more if `alpha` is not the default",
)
def opcm(
    tensors: Sequence[torch.Tensor],
    base: torch.Tensor | None,
    *,
    prepared: Additions,
    weight: Sequence[float],
    lambda_: float,
    alpha: float,
    normalize: bool,
) -> torch.Tensor:
    """Return the base plus λ times the (rescaled) sum of what the models add, float32."""
    parts: Sequence[torch.Tensor] | None = prepared.parts
    if parts is None or alpha != ALPHA.default:
        vectors = differences(tensors, base)
        parts = vectors if parts is None else cleaned(vectors, alpha)
    merged = sum_on(torch.zeros_like(required(base)), parts, weight, 1.0)
    scale = 1.0
    if normalize and (norm := _norm(merged)):
        wanted = sum(abs(share) * norm for share, norm in zip(weight, prepared.norms, strict=True)) / len(weight)
        scale = wanted / norm
    return sum_on(base, [merged], [scale], lambda_)


def cleaned(vectors: Sequence[torch.Tensor], alpha: float) -> list[torch.Tensor]:
    """Return what each task vector adds to the sum of those before it, float32."""

    def one_by_one(matrices: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        parts = [matrices[0]]
        total = matrices[0].clone()
        for matrix in matrices[1:]:
            parts.append(projected(matrix, total, alpha))
            total.add_(parts[-1])
        return parts

    return on_matrices(one_by_one, vectors)


def projected(matrix: torch.Tensor, merged: torch.Tensor, alpha: float) -> torch.Tensor:
    """Return the matrix without what ``merged`` has a claim to.

    Raises:
        MergeError: as `svd` raises.
    """
    u, s, vh = svd(merged)
    # No share of a sum of zeros exceeds alpha, but there is nothing to protect either.
    shares = s.cumsum(0, dtype=torch.float64) / s.sum(dtype=torch.float64).clamp(min=1e-300)
    leading = int((shares <= alpha).sum())
    inside = u.T @ matrix @ vh.T
    claimed = torch.diag(inside.diagonal())
    claimed[:leading, :leading] = inside[:leading, :leading]
    return matrix - u @ claimed @ vh


def _norm(vector: torch.Tensor) -> float:
    return math.sqrt(float(vector.double().square_().sum()))
