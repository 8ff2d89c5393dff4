"""CycleQD's crossover and mutations: a mean of task vectors whose singular values or entries are then shaken.

Kuroki, Nakamura, Akiba and Tang 2025, "Agent skill acquisition for large language models via CycleQD",
https://arxiv.org/abs/2410.14735. The crossover is the base plus a weighted mean of the parents' task vectors. Of the
two mutations, ``svd`` scales each singular value of the child's task vector by a factor of its own between 1 and
1 + svd, so that a child moves along directions that training has found; ``noise`` is the plain alternative.

Difference: the authors' code adds the scaled components of one expert's task vector, decomposed beforehand; here they
are those of the child's own, which needs no file and holds for children of children. As in their code every matrix is
mutated, embeddings and heads too, and everything else is left alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from evomerge.merging.differences import differences, sum_on
from evomerge.merging.method import Parameter, merge_method
from evomerge.merging.methods.linear import normalised
from evomerge.merging.normals import NOISE, Normals, common_seed, uniform
from evomerge.merging.singular_vectors import is_matrix, rank_of
from evomerge.merging.singular_vectors import svd as decomposed
from evomerge.merging.task_vectors import WEIGHT, required

SVD = Parameter(
    "svd",
    default=0.0,
    low=0.0,
    high=0.5,
    per_model=False,
    searchable=False,
    description="singular values of the task vector grow by a random share up to this",
    minimum=0.0,
)


@merge_method(
    "cycle_qd",
    parameters=(WEIGHT, SVD, NOISE),
    summary="the base plus the weighted mean of task vectors, its singular values or its entries shaken",
    paper="Kuroki et al. 2025, https://arxiv.org/abs/2410.14735",
    formula="θ₀ + U diag((1 + s·rⱼ) σⱼ) Vᵀ + σ ε,  U diag(σ) Vᵀ = Σ wᵢ δᵢ / Σ wᵢ,  rⱼ ~ U(0, 1),  ε ~ N(0, 1)",
    needs_base=True,
    kind="matrix",
    randomised=True,
    others="singular values of two-dimensional tensors wherever they stand and of stacks of experts; all else has none",
    cost="one pass over the parents; with svd a singular value decomposition of every matrix, each time",
)
def cycle_qd(
    tensors: Sequence[torch.Tensor],
    base: torch.Tensor | None,
    *,
    weight: Sequence[float],
    svd: float,
    noise: float,
    seeds: Sequence[int] | None = None,
) -> torch.Tensor:
    """Return the mutated child of ``tensors``, float32.

    Raises:
        MergeError: there is no base, weights of both signs sum to zero, or a task vector has no singular values.
    """
    shares = normalised(weight, "cycle_qd", "other weights")
    child = sum_on(torch.zeros_like(required(base), dtype=torch.float32), differences(tensors, base), shares, 1.0)
    if svd and is_matrix(child):
        child = shaken(child, svd, common_seed(seeds, "cycle_qd"))
    child = child.add_(required(base))
    if noise:
        drawn = Normals(common_seed(seeds, "cycle_qd")).cut(0, child.numel()).reshape(child.shape)
        child.add_(drawn.to(child.device), alpha=noise)
    return child


def shaken(vector: torch.Tensor, rate: float, seed: int) -> torch.Tensor:
    """Return U diag((1 + rate · rⱼ) σⱼ) Vᵀ of a task vector, or of each matrix of a stack, with uniform rⱼ."""
    matrices = vector.unbind(0) if vector.dim() == 3 else (vector,)
    draws = uniform(seed, len(matrices) * rank_of(vector)).reshape(len(matrices), -1).to(vector.device)
    parts = [grown(matrix, rate * each) for matrix, each in zip(matrices, draws, strict=True)]
    return torch.stack(parts) if vector.dim() == 3 else parts[0]


def grown(matrix: torch.Tensor, growth: torch.Tensor) -> torch.Tensor:
    """Return A + U diag(growth · σ) Vᵀ, float32; ``growth`` has one number for each singular value.

    Raises:
        MergeError: the matrix has no singular value decomposition.
    """
    u, s, vh = decomposed(matrix)
    return torch.addmm(matrix, u * (s * growth), vh)
