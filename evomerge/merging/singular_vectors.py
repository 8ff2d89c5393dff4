"""Singular vectors of task vectors: what the methods on matrices share.

What counts as a matrix: two-dimensional tensors, wherever they stand, and stacks of matrices (the fused experts of a
mixture of experts: three dimensions, the last two of 8 or more), each matrix of which is treated on its own.
Everything else, vectors and convolution kernels, is not.

Precision: float32, in LAPACK's order; the same machine and number of threads give the same bits. Singular values
below max(rows, columns) · 2⁻²³ times the largest are zero to that precision and their vectors are whatever the
rounding left: both are set to zero, so that a matrix of low rank (a LoRA adapter, a parent that equals the base) gives
the same result everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from evomerge.errors import MergeError

SMALLEST_EXPERT = 8  # a three-dimensional tensor with a shorter row or column is a convolution kernel


class Svd(NamedTuple):
    """A = U diag(s) Vᵀ with s falling; columns of U and rows of Vᵀ are zero where s is.

    Args:
        u: (rows, r), r the shorter side.
        s: (r,).
        vh: (r, columns).
    """

    u: torch.Tensor
    s: torch.Tensor
    vh: torch.Tensor


def is_matrix(tensor: torch.Tensor) -> bool:
    """Return whether the tensor is a matrix or a stack of matrices, with at least one entry."""
    if tensor.numel() == 0:
        return False
    return tensor.dim() == 2 or (tensor.dim() == 3 and min(tensor.shape[1:]) >= SMALLEST_EXPERT)


def rank_of(tensor: torch.Tensor) -> int:
    """Return the largest rank that a matrix (or each of a stack) of this shape can have."""
    return min(tensor.shape[-2:])


def on_matrices(
    function: Callable[[Sequence[torch.Tensor]], Sequence[torch.Tensor]], tensors: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    """Return ``function(matrices)``; for stacks, stacks of what it returns for the first matrices, the second, …"""
    if tensors[0].dim() == 2:
        return list(function(tensors))
    parts = [function(matrices) for matrices in zip(*tensors, strict=True)]
    return [torch.stack(part) for part in zip(*parts, strict=True)]


def svd(matrix: torch.Tensor, size: torch.Tensor | None = None) -> Svd:
    """Return the reduced singular value decomposition of a matrix, float32.

    Args:
        matrix: (rows, columns).
        size: the norm of what the matrix was computed from, if that was larger: singular values that its rounding
            may have made count as zero.

    Raises:
        MergeError: an entry is not finite, or the decomposition does not converge.
    """
    matrix = matrix.float()
    if not bool(matrix.isfinite().all()):
        raise MergeError("it has entries that are not finite (or overflow float32), so no singular vectors")
    u, s, vh = _decompose(matrix)
    kept = s > max(matrix.shape) * torch.finfo(torch.float32).eps * (s[0] if size is None else size)
    return Svd(u.mul_(kept), s.mul_(kept), vh.mul_(kept[:, None]))


def polar(matrix: torch.Tensor) -> torch.Tensor:
    """Return U Vᵀ of a matrix, float32: the nearest one with orthonormal columns (rows, if there are fewer).

    It is what orthogonalising by a Procrustes problem gives (Gargiulo et al. 2025). Directions whose singular
    value is zero stay zero.

    Raises:
        MergeError: as `svd` raises.
    """
    u, _, vh = svd(matrix)
    return u @ vh


def _decompose(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    # The fast algorithm fails to converge on rare matrices; the slower one, or more digits, then succeeds.
    try:
        return torch.linalg.svd(matrix, full_matrices=False)
    except torch.linalg.LinAlgError:
        pass
    try:
        if matrix.is_cuda:
            return torch.linalg.svd(matrix, full_matrices=False, driver="gesvd")
        u, s, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    except torch.linalg.LinAlgError as error:
        raise MergeError(f"its singular value decomposition does not converge: {error}") from error
    return u.float(), s.float(), vh.float()
