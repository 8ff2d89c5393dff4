"""Isotropic merging: a merged task vector that is equally strong in all its directions.

Marczak et al. 2025, "No task left behind: isotropic model merging with common and task-specific subspaces",
https://arxiv.org/abs/2502.04959. Reference: the authors' code and FusionBench's.

Differences, none of which shows for matrices of full rank and weights of 1: directions whose singular value is zero
stay zero (the reference fills them with whatever directions LAPACK returns) and do not count in the mean; weights,
which the papers have not, scale the task vectors first. Experts fused into one tensor are merged one by one. As in the
reference every two-dimensional tensor is a matrix, embeddings and heads too, and everything else is averaged.

What is prepared: the isotropic matrix for equal weights (and the default ``common`` share), in the models' dtype.
While a search changes λ alone, a merge is one pass. Unequal weights, or another share, have other singular vectors:
each such merge decomposes anew, as long as the preparation took.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from evomerge.merging.differences import (
    differences,
    optional_weight,
    searched_lambda,
    sum_on,
    weighted_differences,
)
from evomerge.merging.method import Parameter, merge_method
from evomerge.merging.singular_vectors import is_matrix, on_matrices, polar, rank_of, svd

COMMON = Parameter(
    "common",
    default=0.8,
    low=0.5,
    high=0.95,
    per_model=False,
    searchable=False,
    description="share of the directions that the models have in common; the rest is divided among the models",
    minimum=0.0,
    maximum=1.0,
)
WEIGHT = optional_weight(searchable=False)
LAMBDA = searched_lambda(0.5, 2.0)
OTHERS = (
    "two-dimensional tensors are matrices wherever they stand; stacks of experts are merged matrix by matrix; "
    "vectors and convolution kernels are averaged"
)


def isotropic_sum(tensors: Sequence[torch.Tensor], base: torch.Tensor | None) -> torch.Tensor | None:
    """Return the isotropic sum of the task vectors in the tensors' dtype; None if they are no matrices."""
    return _isotropic(differences(tensors, base)).to(tensors[0].dtype) if is_matrix(tensors[0]) else None


@merge_method(
    "iso_c",
    parameters=(WEIGHT, LAMBDA),
    summary="the sum of task vectors with all singular values set to their mean",
    paper="Marczak et al. 2025, https://arxiv.org/abs/2502.04959",
    formula="θ₀ + λ σ̄ U Vᵀ,  U diag(σ) Vᵀ = Σ wᵢ δᵢ,  σ̄ = mean of σ",
    needs_base=True,
    kind="matrix",
    prepare=isotropic_sum,
    others=OTHERS,
    cost="one pass over the prepared matrix; one SVD if the weights differ",
)
def iso_c(
    tensors: Sequence[torch.Tensor],
    base: torch.Tensor | None,
    *,
    prepared: torch.Tensor | None,
    weight: Sequence[float],
    lambda_: float,
) -> torch.Tensor:
    """Return the base plus λ times the isotropic sum of the task vectors, float32."""
    if prepared is None:
        return _average(tensors, base, weight, lambda_)
    if _equal(weight):
        return sum_on(base, [prepared], weight[:1], lambda_)
    vectors = list(weighted_differences(tensors, base, weight))
    return sum_on(base, [_isotropic(vectors)], [1.0], lambda_)


def isotropic_subspaces(tensors: Sequence[torch.Tensor], base: torch.Tensor | None) -> torch.Tensor | None:
    """Return the task vectors merged for the default share of common directions, in the tensors' dtype.

    None if they are no matrices, or have fewer rows or columns than there are models.
    """
    if not is_matrix(tensors[0]) or rank_of(tensors[0]) < len(tensors):
        return None
    return _with_subspaces(differences(tensors, base), float(COMMON.default)).to(tensors[0].dtype)


@merge_method(
    "iso_cts",
    parameters=(WEIGHT, LAMBDA, COMMON),
    summary="directions that the task vectors share and directions of each one's own, all equally strong",
    paper="Marczak et al. 2025, https://arxiv.org/abs/2502.04959",
    formula="θ₀ + λ σ̄ U* V*ᵀ,  U*, V* = [common | own₁ | … | ownₙ] orthogonalised,  σ̄ = mean of their σ",
    needs_base=True,
    kind="matrix",
    prepare=isotropic_subspaces,
    others=OTHERS + ", as are matrices with fewer rows or columns than there are models",
    cost="one pass over the prepared matrix; models + 3 SVDs if the weights differ or `common` is not the default",
)
def iso_cts(
    tensors: Sequence[torch.Tensor],
    base: torch.Tensor | None,
    *,
    prepared: torch.Tensor | None,
    weight: Sequence[float],
    lambda_: float,
    common: float,
) -> torch.Tensor:
    """Return the base plus λ times the isotropic merge in common and task-specific subspaces, float32."""
    if prepared is None:
        return _average(tensors, base, weight, lambda_)
    if _equal(weight) and common == COMMON.default:
        return sum_on(base, [prepared], weight[:1], lambda_)
    vectors = list(weighted_differences(tensors, base, weight))
    return sum_on(base, [_with_subspaces(vectors, common)], [1.0], lambda_)


def _average(
    tensors: Sequence[torch.Tensor], base: torch.Tensor | None, weights: Sequence[float], factor: float
) -> torch.Tensor:
    return sum_on(base, differences(tensors, base), weights, factor / len(tensors))


def _equal(weights: Sequence[float]) -> bool:
    return all(weight == weights[0] for weight in weights)


def _isotropic(vectors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return σ̄ U Vᵀ (Iso-C) of task vectors, each a matrix or a stack of them."""

    def flatten(matrices: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        u, s, vh = svd(torch.stack(list(matrices)).sum(0))
        return [(u @ vh).mul_(_mean(s))]

    return on_matrices(flatten, vectors)[0]


def _with_subspaces(vectors: Sequence[torch.Tensor], common: float) -> torch.Tensor:
    shared, own = subspace_sizes(rank_of(vectors[0]), len(vectors), common)
    return on_matrices(lambda matrices: [_subspaces(matrices, shared, own)], vectors)[0]


def subspace_sizes(rank: int, models: int, common: float) -> tuple[int, int]:
    """Return how many directions are common, and how many are each model's own; together ``rank``.

    The common ones are the share ``common``, moved to the nearest number that leaves each model equally many.
    """
    wanted = rank - int(rank * common)
    own = min(round(wanted / models), rank // models)
    return rank - own * models, own


def _subspaces(matrices: Sequence[torch.Tensor], shared: int, own: int) -> torch.Tensor:
    """Return σ̄ U* V*ᵀ (Iso-CTS) of task vectors, each (rows, columns)."""
    total = svd(torch.stack(list(matrices)).sum(0))
    us, values, vhs = [total.u[:, :shared]], [total.s[:shared]], [total.vh[:shared]]
    for matrix in matrices:
        # What the common directions explain on the left is taken out before the model's own are found.
        rest = svd(matrix - us[0] @ (us[0].T @ matrix), torch.linalg.matrix_norm(matrix))
        us.append(rest.u[:, :own])
        values.append(rest.s[:own])
        vhs.append(rest.vh[:own])
    return (polar(torch.cat(us, 1)) @ polar(torch.cat(vhs))).mul_(_mean(torch.cat(values)))


def _mean(values: torch.Tensor) -> torch.Tensor:
    """Return the mean of the singular values that are not zero; 0 if all are."""
    return values.sum(dtype=torch.float64).div((values > 0).sum().clamp(min=1)).float()
