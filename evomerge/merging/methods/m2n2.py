"""M2N2's crossover: spherical interpolation of two models, with a split point after which their shares are swapped.

Abrantes, Lange and Tang 2025, "Competition and attraction improve model fusion", https://arxiv.org/abs/2508.16204. A
model is one long vector: its tensors in the order of the merged model (embeddings, layer after layer, last norm and
head). The arc is that between these vectors, so its angle is the same for every tensor; the split point lies anywhere
in them, within a tensor too. Before it the second model's share of the arc is t, from it on 1 − t.

As in the authors' code vectors that are parallel or opposite (sin Ω ≤ 10⁻⁶) are interpolated linearly. Products are
summed in float64 here, and rounded to 12 digits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from evomerge.merging.inner_products import norm, products
from evomerge.merging.method import NOWHERE, Parameter, Place, merge_method
from evomerge.merging.normals import NOISE, Normals, common_seed
from evomerge.merging.state import state_class
from evomerge.merging.sums import weighted

PARALLEL = 1e-6  # sin Ω up to which vectors are interpolated linearly (the authors' bound)

T = Parameter(
    "t",
    default=0.5,
    low=0.0,
    high=1.0,
    per_model=False,
    searchable=True,
    description="share of the second model's side of the arc before the split; 1 − t after it",
    required=True,
    minimum=0.0,
    maximum=1.0,
    one_value=True,
)
SPLIT = Parameter(
    "split",
    default=1.0,
    low=0.0,
    high=1.0,
    per_model=False,
    searchable=True,
    description="where the shares are swapped, as a share of the model's numbers; 1 for nowhere",
    minimum=0.0,
    maximum=1.0,
    one_value=True,
)


@state_class
class Shares(NamedTuple):
    """Both models' shares before the split, where that lies in a tensor, and the noise of its entries."""

    first: float
    second: float
    split: int
    noise: Normals | None

    def cut(self, start: int, stop: int) -> tuple[float, float, int, torch.Tensor | None]:
        """Return the shares, how many of the flat entries [start, stop) come before the split, and their noise."""
        before = min(max(self.split - start, 0), stop - start)
        return self.first, self.second, before, None if self.noise is None else self.noise.cut(start, stop)


def pair_products(tensors: Sequence[torch.Tensor], base: torch.Tensor | None) -> list[float]:
    """Return ⟨θ₁, θ₁⟩, ⟨θ₁, θ₂⟩ and ⟨θ₂, θ₂⟩; zeros where there is one model only."""
    if len(tensors) < 2:
        return [0.0, 0.0, 0.0]
    (first, dot), (_, second) = products([tensor.reshape(-1) for tensor in tensors])
    return [first, dot, second]


def arc_shares(t: float, sums: Sequence[float]) -> tuple[float, float]:
    """Return the shares of two vectors in the point at ``t`` on their arc; ``sums`` as `pair_products`."""
    first, dot, second = sums
    lengths = norm(first) * norm(second)
    angle = math.acos(min(1.0, max(-1.0, dot / lengths))) if lengths else 0.0
    if math.sin(angle) <= PARALLEL:
        return 1 - t, t
    return math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)


def shares(
    tensors: Sequence[torch.Tensor],
    base: torch.Tensor | None,
    *,
    sums: Sequence[float],
    t: float,
    split: float,
    noise: float,
    seeds: Sequence[int] | None = None,
    place: Place = NOWHERE,
) -> Shares:
    """Return what the function needs to know of the whole model, for one tensor."""
    entries = place.entries or tensors[0].numel()
    drawn = Normals(common_seed(seeds, "m2n2")) if noise else None
    return Shares(*arc_shares(t, sums), math.floor(split * entries) - place.offset, drawn)


@merge_method(
    "m2n2",
    parameters=(T, SPLIT, NOISE),
    summary="between two models along their arc, with shares that are swapped at a split point",
    paper="Abrantes, Lange and Tang 2025, https://arxiv.org/abs/2508.16204",
    formula="sin((1−a)Ω)/sin Ω · θ₁ + sin(aΩ)/sin Ω · θ₂ + σ ε,  a = t before the split, 1 − t after,  Ω = ∠(θ₁, θ₂) "
    "of the whole models,  ε ~ N(0, 1)",
    needs_base=False,
    kind="elementwise",
    fused=True,
    randomised=True,
    min_models=1,
    max_models=2,
    reduce=shares,
    summed=pair_products,
    ordered=True,
    cost="two passes over the parents; one model alone is copied, with noise on it",
)
def m2n2(
    tensors: Sequence[torch.Tensor],
    base: torch.Tensor | None,
    *,
    reduced: tuple[float, float, int, torch.Tensor | None],
    t: float,
    split: float,
    noise: float,
) -> torch.Tensor:
    """Return the child's entries, float32; one model alone gives itself, with the noise."""
    first, second, before, drawn = reduced
    if len(tensors) == 1:
        merged = tensors[0].float()
    elif 0 < before < len(tensors[0]):
        head, tail = [x[:before] for x in tensors], [x[before:] for x in tensors]
        merged = torch.cat([weighted(head, [first, second]), weighted(tail, [second, first])])
    else:
        merged = weighted(tensors, [first, second] if before else [second, first])
    return merged if drawn is None else merged.add(drawn.to(merged.device), alpha=noise)
