"""NuSLERP: spherical interpolation with weights, of models or of task vectors, whole or line by line.

mergekit's `nuslerp`: Shoemake 1985, https://doi.org/10.1145/325334.325242, on the first two models; with a base,
on their task vectors. ``nuslerp_flatten`` takes a tensor as one vector. Without it, each row is a vector (the numbers
that belong to one output); with ``nuslerp_row_wise`` each column is one, which is what mergekit computes under that
name, although its documentation says rows. Of tensors of more dimensions, rows run along the last and columns along
the first. Vectors of one tensor (norms, biases) are one row.

Lines that are parallel or opposite are interpolated linearly. Nearly opposite ones have no arc that rounding would not
choose, so the bound is 10⁻¹² on 1 − cos² θ (the rounding of sums in float64) where mergekit's is 10⁻¹⁶.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from evomerge.errors import MergeError
from evomerge.merging.inner_products import (
    COLUMNS,
    ROWS,
    PerLine,
    combined,
    line_products,
    norm,
    per_line,
    products,
)
from evomerge.merging.method import merge_method, switch
from evomerge.merging.state import state_class
from evomerge.merging.task_vectors import WEIGHT

TINY = 1e-7  # a norm below this counts as this (mergekit's bound)
NO_WEIGHT = 1e-6  # weights that sum to less count as equal (mergekit's bound)
PARALLEL = 1e-12  # 1 − cos² θ below which there is no arc


@state_class
class Whole(NamedTuple):
    """⟨θᵢ, θⱼ⟩ of the models, or task vectors, and the shape of the tensor."""

    products: list[list[float]]
    shape: tuple[int, ...]


def whole(tensors: Sequence[torch.Tensor], base: torch.Tensor | None, *, shape: Sequence[int]) -> Whole:
    """Return the products of the tensors as wholes."""
    return Whole(products(tensors, base), tuple(shape))


def shares(
    tensors: Sequence[torch.Tensor],
    base: torch.Tensor | None,
    *,
    prepared: Whole,
    weight: Sequence[float],
    nuslerp_row_wise: bool,
    nuslerp_flatten: bool,
) -> tuple[float, float] | tuple[PerLine, PerLine]:
    """Return both models' shares in the result: numbers, or one for each line."""
    if len(tensors) < 2:
        return 1.0, 0.0
    if len(tensors) > 2:
        raise MergeError(f"nuslerp merges two models (beside a base), here are {len(tensors)}")
    total = sum(weight)
    t = 0.5 if abs(total) < NO_WEIGHT else weight[1] / total
    if nuslerp_flatten:
        return _whole_arc(t, prepared.products)
    dimension = COLUMNS if nuslerp_row_wise else ROWS
    first, second = _arcs(t, line_products(tensors, base, prepared.shape, dimension))
    return per_line(first, prepared.shape, dimension), per_line(second, prepared.shape, dimension)


@merge_method(
    "nuslerp",
    parameters=(
        WEIGHT,
        switch("nuslerp_row_wise", False, "interpolate columns, not rows, where tensors are not taken as one vector"),
        switch("nuslerp_flatten", True, "take each tensor as one vector"),
    ),
    summary="spherical interpolation of two models, or of their task vectors, with weights",
    paper="Shoemake 1985, https://doi.org/10.1145/325334.325242; mergekit's `nuslerp`",
    formula="(θ₀ +) sin((1−t)φ)/sin φ · δ₁ + sin(tφ)/sin φ · δ₂,  t = w₂/(w₁+w₂),  φ = ∠(δ₁, δ₂)",
    needs_base=False,
    optional_base=True,
    kind="elementwise",
    fused=True,
    min_models=2,
    max_models=2,
    prepare=whole,
    reduce=shares,
    others="line by line, a vector is one row; rows of tensors of more dimensions run along the last",
    cost="one pass over the parents, a second one line by line",
)
def nuslerp(
    tensors: Sequence[torch.Tensor],
    base: torch.Tensor | None,
    *,
    reduced: Sequence[float | torch.Tensor],
    weight: Sequence[float],
    nuslerp_row_wise: bool,
    nuslerp_flatten: bool,
) -> torch.Tensor:
    """Return the point on the arc between both models, or from the base between both task vectors; float32."""
    if len(tensors) < 2:
        return tensors[0]
    first, second = reduced
    if isinstance(first, float) and isinstance(second, float):
        return combined(tensors, base, [first, second])
    vectors = [tensor.float() if base is None else tensor.float() - base for tensor in tensors]
    merged = vectors[0] * first + vectors[1] * second
    return merged if base is None else merged.add_(base)


def _whole_arc(t: float, products: Sequence[Sequence[float]]) -> tuple[float, float]:
    (first, dot), (_, second) = products
    cosine = min(1.0, max(-1.0, dot / max(norm(first), TINY) / max(norm(second), TINY)))
    if 1 - cosine * cosine <= PARALLEL:
        return 1 - t, t
    angle = math.acos(cosine)
    return math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)


def _arcs(t: float, pairs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the shares for each line; ``pairs``: (lines, 3), as `line_products` returns them."""
    first, dot, second = pairs.unbind(1)
    lengths = [square.sqrt().clamp_(min=TINY) for square in (first, second)]
    cosine = (dot / lengths[0] / lengths[1]).clamp_(-1, 1)
    parallel = 1 - cosine * cosine <= PARALLEL
    angle = torch.acos(torch.where(parallel, 0, cosine))
    arcs = [torch.sin(part * angle) / torch.sin(angle) for part in (1 - t, t)]
    shares = [torch.where(parallel, part, arc).float() for part, arc in zip((1 - t, t), arcs, strict=True)]
    return shares[0], shares[1]
