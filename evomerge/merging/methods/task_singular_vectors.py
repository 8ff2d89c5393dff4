"""Task singular vectors: each task vector's leading directions, made orthogonal to the other tasks' before the sum.

`tsv_merge`: Gargiulo et al. 2025, "Task singular vectors: reducing task interference in model merging",
https://arxiv.org/abs/2412.00081 (TSV-Merge). Reference: the authors' code and FusionBench's. Of r singular
directions each of n models keeps the first r/n; all of them side by side are orthogonalised, left and right; the
singular values stay.

`r_tsvm`: Yang et al. 2025, "Mix data or merge models? Balancing the helpfulness, honesty, and harmlessness of large
language model via model merging", https://arxiv.org/abs/2502.06876 (R-TSVM, from version 3 on RESM). It adds to TSV-M
weights that heed outliers and ranks that heed sparsity. No code was found and the formulas here are a reading of those
words, not the paper's: a model's weight in a tensor follows the share of its task vector's L1 norm that lies in
outliers (above mean + 3 standard deviations of the magnitudes), relative to the other models' share; its rank is r/n
times the share of entries that are not almost zero (below a tenth of the root mean square).

Differences from TSV-M, none of which shows for task vectors of full rank whose directions are independent: directions
of singular value zero are left out, so that the result does not depend on which LAPACK returns for them; matrices with
fewer rows or columns than there are models are averaged. Experts fused into one tensor are merged one by one. As in
the reference every two-dimensional tensor is a matrix, embeddings and heads too, and everything else is averaged.

What is prepared: each model's orthogonalised part of the sum, as a matrix in the models' dtype. Weights and λ only
scale these, so a merge costs what task arithmetic costs, where the reference decomposes n + 2 matrices each time.
A weight of zero takes a model out of the sum, not out of the orthogonalisation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from evomerge.merging.differences import differences, optional_weight, sum_on
from evomerge.merging.method import Parameter, merge_method
from evomerge.merging.singular_vectors import is_matrix, on_matrices, polar, rank_of, svd
from evomerge.merging.state import state_class
from evomerge.merging.task_vectors import LAMBDA

OUTLIER = 3.0  # standard deviations above the mean magnitude from which an entry is an outlier
ALMOST_ZERO = 0.1  # times the root mean square, below which an entry counts as zero
OTHERS = (
    "two-dimensional tensors are matrices wherever they stand; stacks of experts are merged matrix by matrix; vectors, "
    "convolution kernels and matrices with fewer rows or columns than there are models are averaged"
)
REWEIGHT = Parameter(
    "reweight",
    default=1.0,
    low=0.0,
    high=1.0,
    per_model=False,
    searchable=True,
    description="how far the models' outliers decide their weights; 0 leaves the weights alone",
    minimum=0.0,
)


def orthogonal_parts(tensors: Sequence[torch.Tensor], base: torch.Tensor | None) -> list[torch.Tensor] | None:
    """Return each model's part of the merged task vector, in the tensors' dtype; None if they are averaged."""
    if not _decomposed(tensors):
        return None
    ranks = [rank_of(tensors[0]) // len(tensors)] * len(tensors)
    return _parts(differences(tensors, base), ranks, tensors[0].dtype)


@merge_method(
    "tsv_merge",
    parameters=(optional_weight(), LAMBDA),
    summary="leading singular directions of each task vector, orthogonalised across tasks, then summed",
    paper="Gargiulo et al. 2025, https://arxiv.org/abs/2412.00081",
    formula="θ₀ + λ Σ wᵢ Û⁽ⁱ⁾ Σ⁽ⁱ⁾ V̂⁽ⁱ⁾ᵀ,  Û = orthogonalised [U⁽¹⁾ | … | U⁽ⁿ⁾], r/n directions each; V̂ alike",
    needs_base=True,
    kind="matrix",
    prepare=orthogonal_parts,
    others=OTHERS,
    cost="one pass over prepared parts, one for each model",
)
def tsv_merge(
    tensors: Sequence[torch.Tensor],
    base: torch.Tensor | None,
    *,
    prepared: Sequence[torch.Tensor] | None,
    weight: Sequence[float],
    lambda_: float,
) -> torch.Tensor:
    """Return the base plus λ times the weighted sum of the orthogonalised parts, float32."""
    if prepared is None:
        return sum_on(base, differences(tensors, base), weight, lambda_ / len(tensors))
    return sum_on(base, prepared, weight, lambda_)


@state_class
class Reweighted(NamedTuple):
    """Parts of the merged task vector (None if averaged) and the share of outliers in each task vector's L1 norm."""

    parts: list[torch.Tensor] | None
    outliers: list[float]


def sparse_parts(tensors: Sequence[torch.Tensor], base: torch.Tensor | None) -> Reweighted:
    """Return each model's part, of a rank that its sparsity decides, and its share of outliers."""
    vectors = differences(tensors, base)
    outliers = [outlier_share(vector) for vector in vectors]
    if not _decomposed(tensors):
        return Reweighted(None, outliers)
    most = rank_of(vectors[0]) // len(vectors)
    ranks = [max(1, int(most * (1 - zero_share(vector)))) for vector in vectors]
    return Reweighted(_parts(vectors, ranks, tensors[0].dtype), outliers)


@merge_method(
    "r_tsvm",
    parameters=(optional_weight(), REWEIGHT, LAMBDA),
    summary="tsv_merge with weights that heed outliers and ranks that heed sparsity",
    paper="after Yang et al. 2025, https://arxiv.org/abs/2502.06876",
    formula="as tsv_merge with wᵢ (oᵢ/ō)^ρ for wᵢ and ⌊(r/n)(1 − zᵢ)⌋ directions; oᵢ share of outliers, zᵢ of zeros",
    needs_base=True,
    kind="matrix",
    prepare=sparse_parts,
    others=OTHERS + ", with the same weights",
    cost="one pass over prepared parts, one for each model",
)
def r_tsvm(
    tensors: Sequence[torch.Tensor],
    base: torch.Tensor | None,
    *,
    prepared: Reweighted,
    weight: Sequence[float],
    reweight: float,
    lambda_: float,
) -> torch.Tensor:
    """Return the base plus λ times the reweighted sum of the orthogonalised parts, float32."""
    mean = sum(prepared.outliers) / len(prepared.outliers)
    factors = [(share / mean) ** reweight if mean else 1.0 for share in prepared.outliers]
    weights = [share * factor for share, factor in zip(weight, factors, strict=True)]
    if prepared.parts is None:
        return sum_on(base, differences(tensors, base), weights, lambda_ / len(tensors))
    return sum_on(base, prepared.parts, weights, lambda_)


def outlier_share(vector: torch.Tensor) -> float:
    """Return the share of the L1 norm that lies above the mean magnitude plus three standard deviations."""
    magnitudes = vector.abs()
    total = float(magnitudes.sum(dtype=torch.float64))
    if not total:
        return 0.0
    deviation, mean = torch.std_mean(magnitudes, correction=0)
    return float(magnitudes[magnitudes > mean + OUTLIER * deviation].sum(dtype=torch.float64)) / total


def zero_share(vector: torch.Tensor) -> float:
    """Return the share of entries that are below a tenth of the root mean square; 0 for a vector of zeros."""
    limit = ALMOST_ZERO * float(vector.square().mean().sqrt())
    return float((vector.abs() < limit).float().mean())


def _decomposed(tensors: Sequence[torch.Tensor]) -> bool:
    return is_matrix(tensors[0]) and rank_of(tensors[0]) >= len(tensors)


def _parts(vectors: Sequence[torch.Tensor], ranks: Sequence[int], dtype: torch.dtype) -> list[torch.Tensor]:
    def orthogonalised(matrices: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        factors = [svd(matrix) for matrix in matrices]
        left = polar(torch.cat([each.u[:, :rank] for each, rank in zip(factors, ranks, strict=True)], 1))
        right = polar(torch.cat([each.vh[:rank] for each, rank in zip(factors, ranks, strict=True)]))
        columns, rows = left.split(list(ranks), 1), right.split(list(ranks))
        values = [each.s[:rank] for each, rank in zip(factors, ranks, strict=True)]
        return [((u * s) @ vh).to(dtype) for u, s, vh in zip(columns, values, rows, strict=True)]

    return on_matrices(orthogonalised, vectors)
