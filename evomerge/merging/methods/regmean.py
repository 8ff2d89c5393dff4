"""RegMean: the matrix whose outputs are nearest to every model's own, in least squares over its own inputs.

Jin et al. 2023, "Dataless knowledge fusion by merging weights of language models", https://arxiv.org/abs/2212.09849.

Legend: Wᵢ weight of model i as (inputs, outputs), Gᵢ = XᵢᵀXᵢ / tokens of its inputs, α the factor on the entries of
Gᵢ outside its diagonal, λᵢ weight of the model, W̄ = Σ λᵢ Wᵢ / Σ λᵢ, W⁰ the plain mean of the Wᵢ.

Solved for the difference from W̄, which is where directions that no input has are left; the plain inverse of the paper
blows up there. Gram matrices are stored in float32, so with α = 1 a ridge below some 1e-5 lets their rounding show in
directions in which the inputs hardly vary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from evomerge.errors import MergeError
from evomerge.merging.method import Parameter, merge_method
from evomerge.merging.methods.linear import normalised

WEIGHT = Parameter(
    "weight",
    default=1.0,
    low=0.0,
    high=1.0,
    per_model=True,
    searchable=True,
    description="λᵢ, factor on the model's error",
    minimum=0.0,
)
ALPHA = Parameter(
    "alpha",
    default=0.9,
    low=0.1,
    high=1.0,
    per_model=False,
    searchable=True,
    description="factor on the Gram matrices outside their diagonals: 0 looks at each input alone, 1 at all",
    minimum=0.0,
    maximum=1.0,
)
RIDGE = Parameter(
    "ridge",
    default=1e-6,
    low=0.0,
    high=0.1,
    per_model=False,
    searchable=False,
    description="added to the diagonal, as a share of its mean; more pulls towards the average",
    minimum=0.0,
)


def gram_products(
    tensors: Sequence[torch.Tensor],
    base: torch.Tensor | None,
    *,
    statistics: Sequence[Mapping[str, torch.Tensor]] | None,
) -> list[torch.Tensor] | None:
    """Return Gᵢ (Wᵢ − W⁰) of every model, (inputs, outputs), float32, W⁰ the plain mean; None without Gram matrices.

    Of differences, because Σ Gᵢ may be ill-conditioned: what rounding does to Gᵢ Wᵢ would be large in the solution.
    """
    found = grams_of(tensors, statistics)
    if found is None:
        return None
    grams, axis = found
    middle = average(tensors, _equal(tensors), torch.float64)
    return [
        (gram.double() @ inputs_first(tensor.double() - middle, axis)).float()
        for gram, tensor in zip(grams, tensors, strict=True)
    ]


def grams_of(
    tensors: Sequence[torch.Tensor], statistics: Sequence[Mapping[str, torch.Tensor]] | None
) -> tuple[list[torch.Tensor], int] | None:
    """Return every model's Gram matrix and the axis of the inputs; None for other tensors, or if one is missing."""
    if tensors[0].ndim != 2 or not tensors[0].numel():
        return None
    if statistics is None or not all("gram" in each and "axis" in each for each in statistics):
        return None
    axis = int(statistics[0]["axis"])
    return [each["gram"].to(tensors[0].device) for each in statistics], axis


def inputs_first(matrix: torch.Tensor, axis: int) -> torch.Tensor:
    """Return a weight as (inputs, outputs)."""
    return matrix.T if axis == 1 else matrix


def average(tensors: Sequence[torch.Tensor], shares: Sequence[float], dtype: torch.dtype) -> torch.Tensor:
    """Return Σ sᵢ θᵢ in ``dtype``."""
    total = tensors[0].to(dtype) * shares[0]
    for tensor, share in zip(tensors[1:], shares[1:], strict=True):
        total.add_(tensor.to(dtype), alpha=share)
    return total


def damped(matrix: torch.Tensor, alpha: float) -> torch.Tensor:
    """Return the matrix with everything outside its diagonal multiplied by α."""
    scaled = matrix * alpha
    scaled.diagonal().copy_(matrix.diagonal())
    return scaled


@merge_method(
    "regmean",
    parameters=(WEIGHT, ALPHA, RIDGE),
    summary="matrices whose outputs are nearest to every model's on its own inputs",
    paper="Jin et al. 2023, https://arxiv.org/abs/2212.09849",
    formula="argmin_W Σ λᵢ ‖Xᵢ W − Xᵢ Wᵢ‖² = (Σ λᵢ G̃ᵢ)⁻¹ Σ λᵢ G̃ᵢ Wᵢ,  G̃ᵢ = α Gᵢ + (1 − α) diag Gᵢ,  Gᵢ = XᵢᵀXᵢ",
    needs_base=False,
    kind="matrix",
    prepare=gram_products,
    statistics=("gram", "axis"),
    others="vectors, embeddings (tied heads too), convolutions and other tensors without a Gram matrix are averaged "
    "with the weights λᵢ",
    cost="for each matrix a Cholesky factorisation, inputs³/3 + 2 inputs² outputs multiplications in float64; the "
    "products of Gram matrices and weights are prepared",
)
def regmean(
    tensors: Sequence[torch.Tensor],
    base: torch.Tensor | None,
    *,
    prepared: Sequence[torch.Tensor] | None,
    statistics: Sequence[Mapping[str, torch.Tensor]] | None,
    weight: Sequence[float],
    alpha: float,
    ridge: float,
) -> torch.Tensor:
    """Return W̄ + (Σ λᵢ G̃ᵢ + ε I)⁻¹ Σ λᵢ G̃ᵢ (Wᵢ − W̄), float32, computed in float64.

    Raises:
        MergeError: the Gram matrices hold NaN or infinity.
    """
    shares = normalised(weight)
    found = grams_of(tensors, statistics)
    if prepared is None or found is None:
        return average(tensors, shares, torch.float32)
    grams, axis = found
    middle = inputs_first(average(tensors, _equal(tensors), torch.float64), axis)
    mean = inputs_first(average(tensors, shares, torch.float64), axis)
    right = average(prepared, shares, torch.float64).mul_(alpha)
    for gram, tensor, share in zip(grams, tensors, shares, strict=True):
        diagonal = gram.diagonal().double().mul(share * (1 - alpha))
        right.addcmul_(inputs_first(tensor, axis).double() - middle, diagonal[:, None])
    system = damped(average(grams, shares, torch.float64), alpha)
    right.sub_(system @ (mean - middle))
    return inputs_first(mean + solved(system, right, ridge), axis).float().contiguous()


def _equal(tensors: Sequence[torch.Tensor]) -> list[float]:
    return [1 / len(tensors)] * len(tensors)


def solved(system: torch.Tensor, right: torch.Tensor, ridge: float) -> torch.Tensor:
    """Return the solution of (A + ε I) X = B for a positive semidefinite A, ε = ridge · mean diagonal of A.

    Where that has no Cholesky factor (no ridge, and directions that no input has) it is the solution of least norm.

    Raises:
        MergeError: A holds NaN or infinity.
    """
    size = float(system.diagonal().mean())
    if not torch.isfinite(system).all():
        raise MergeError("a Gram matrix holds NaN or infinity; gather the statistics again")
    if size <= 0:
        return torch.zeros_like(right)
    system = system.clone()
    system.diagonal().add_(ridge * size)
    factor, failed = torch.linalg.cholesky_ex(system)
    if int(failed) == 0:
        return torch.cholesky_solve(right, factor)
    noise = len(system) * torch.finfo(torch.float32).eps  # of the Gram matrices, relative to the largest direction
    return torch.linalg.pinv(system, rtol=noise, hermitian=True) @ right
