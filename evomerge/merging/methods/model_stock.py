"""Model Stock: go from the base towards the mean of the models as far as the angle between them says.

Jang, Yun and Han 2024, "Model Stock: all we need is just a few fine-tuned models", https://arxiv.org/abs/2403.19522,
Eqs. 3 and 6. As in mergekit, cos θ is the mean over the pairs of models, of each tensor as one vector, or of each row
(``filter_wise``; the last dimension, and a vector is one row).

Where 1 + (N−1) cos θ is zero the ratio has no value and the base is kept. Products of norms below 10⁻⁶ count as this,
mergekit's bound, so that tensors that hardly moved stay closer to the base.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from evomerge.merging.inner_products import ROWS, PerLine, line_products, per_line, products
from evomerge.merging.method import merge_method, switch
from evomerge.merging.state import state_class
from evomerge.merging.task_vectors import required

NO_ANGLE = 1e-6  # mergekit's bounds, for the product of two norms, and for 1 + (N−1) cos θ
SINGULAR = 1e-6


@state_class
class Whole(NamedTuple):
    """⟨δᵢ, δⱼ⟩ of the task vectors, and the shape of the tensor."""

    products: list[list[float]]
    shape: tuple[int, ...]


def whole(tensors: Sequence[torch.Tensor], base: torch.Tensor | None, *, shape: Sequence[int]) -> Whole:
    """Return the products of the task vectors as wholes."""
    return Whole(products(tensors, required(base)), tuple(shape))


def ratios(
    tensors: Sequence[torch.Tensor], base: torch.Tensor | None, *, prepared: Whole, filter_wise: bool
) -> torch.Tensor | PerLine:
    """Return the share of the models' mean in the result: one number for the tensor, or one for each row."""
    if not filter_wise:
        numbers = [prepared.products[i][j] for i in range(len(tensors)) for j in range(i + 1)]
        return ratio(torch.tensor([numbers], dtype=torch.float64, device=tensors[0].device), len(tensors))
    pairs = line_products(tensors, required(base), prepared.shape, ROWS)
    return per_line(ratio(pairs, len(tensors)), prepared.shape, ROWS)


@merge_method(
    "model_stock",
    parameters=(switch("filter_wise", False, "one angle for each row, not for each tensor"),),
    summary="between the base and the mean of the models, where the angle between the models says",
    paper="Jang, Yun and Han 2024, https://arxiv.org/abs/2403.19522",
    formula="t mean(θᵢ) + (1−t) θ₀,  t = N cos θ / (1 + (N−1) cos θ),  cos θ = mean over i<j of ⟨δᵢ, δⱼ⟩/(‖δᵢ‖‖δⱼ‖)",
    needs_base=True,
    kind="elementwise",
    min_models=3,
    prepare=whole,
    reduce=ratios,
    others="filter-wise, a vector is one row; rows of tensors of more dimensions run along the last",
    cost="one pass over the parents, a second one filter-wise",
)
def model_stock(
    tensors: Sequence[torch.Tensor], base: torch.Tensor | None, *, reduced: torch.Tensor, filter_wise: bool
) -> torch.Tensor:
    """Return the point between base and mean, float32; a single model as it is."""
    if len(tensors) < 2:
        return tensors[0]
    start = required(base)
    mean = torch.zeros_like(start, dtype=torch.float32)
    for tensor in tensors:
        mean.add_(tensor, alpha=1 / len(tensors))
    return mean.sub_(start).mul_(reduced).add_(start)


def ratio(pairs: torch.Tensor, count: int) -> torch.Tensor:
    """Return t for each line, float32.

    Args:
        pairs: (lines, count · (count + 1) / 2), as `line_products` returns them.
        count: number of models.
    """
    place = {(i, j): i * (i + 1) // 2 + j for i in range(count) for j in range(i + 1)}
    lengths = [pairs[:, place[i, i]].sqrt() for i in range(count)]
    cosines = [
        (pairs[:, place[i, j]] / (lengths[i] * lengths[j]).clamp(min=NO_ANGLE)).clamp(-1, 1)
        for i in range(count)
        for j in range(i)
    ]
    if not cosines:
        return torch.ones(len(pairs), device=pairs.device)
    cosine = torch.stack(cosines).mean(0)
    divisor = 1 + (count - 1) * cosine
    singular = divisor.abs() < SINGULAR
    return torch.where(singular, 0, count * cosine / torch.where(singular, 1, divisor)).float()
