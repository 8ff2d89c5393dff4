"""RAM: keep what one model alone changed in full, average what several changed.

"Reinforced Agent Merging" 2026, https://arxiv.org/abs/2601.13572, as in mergekit's `ram` and `ramplus_tl`: a model
changes an entry if it moves it by more than ``epsilon``. `ramplus_tl` enlarges what a model alone changed, the more
the larger the part of its changes is that others share, counted in each tensor.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from evomerge.merging.chunks import over_chunks
from evomerge.merging.method import Parameter, merge_method
from evomerge.merging.task_vectors import required, task_vectors

EPSILON = Parameter(
    "epsilon",
    default=1e-5,
    low=0.0,
    high=1e-3,
    per_model=False,
    searchable=False,
    description="a model changes an entry if it moves it by more than this",
    minimum=0.0,
)
R = Parameter(
    "r",
    default=0.1,
    low=0.0,
    high=1.0,
    per_model=False,
    searchable=True,
    description="how much the entries that one model alone changed grow with the share of the others",
)
ALPHA = Parameter(
    "alpha",
    default=0.2,
    low=0.0,
    high=1.0,
    per_model=False,
    searchable=True,
    description="largest ratio of shared to own changes that counts",
    minimum=0.0,
)
_PAPER = "Reinforced Agent Merging 2026, https://arxiv.org/abs/2601.13572"


@merge_method(
    "ram",
    parameters=(EPSILON,),
    summary="keeps what one model alone changed, averages what several changed",
    paper=_PAPER,
    formula="θ₀ + Σ mᵢ δᵢ / max(1, Σ mᵢ),  mᵢ = 1[|δᵢ| > ε] for each entry",
    needs_base=True,
    kind="elementwise",
)
def ram(tensors: Sequence[torch.Tensor], base: torch.Tensor | None, *, epsilon: float) -> torch.Tensor:
    """Return the base plus the mean of the changes at each entry, float32."""
    vectors, counts = changes(tensors, base, epsilon)
    total = torch.zeros_like(counts)
    for vector in vectors:
        total.add_(vector)
    return total.div_(counts.clamp_(min=1)).add_(required(base))


def enlargements(
    tensors: Sequence[torch.Tensor], base: torch.Tensor | None, *, r: float, alpha: float, epsilon: float
) -> list[float]:
    """Return the factor on what each model alone changed: 1 + r · min(α, shared / own changes)."""
    start = required(base)

    def shared_and_own(first: int, last: int) -> torch.Tensor:
        vectors, counts = changes([tensor[first:last] for tensor in tensors], start[first:last], epsilon)
        shared = several(counts)
        marks = [vector.sign().abs_() for vector in vectors]
        parts = [(mark * shared, mark * (1 - shared)) for mark in marks]
        return torch.stack([torch.stack([part.sum(dtype=torch.float64) for part in pair]) for pair in parts])

    counted = torch.stack(over_chunks(shared_and_own, start.numel(), start.device)).sum(0).tolist()
    return [1 + r * min(alpha, shared / own if own else alpha * bool(shared)) for shared, own in counted]


@merge_method(
    "ramplus_tl",
    parameters=(R, ALPHA, EPSILON),
    summary="as ram, and enlarges what a model alone changed where it shares many of its changes",
    paper=_PAPER,
    formula="as ram, where only model i changed an entry times 1 + r · min(α, shared / own changes of i in the tensor)",
    needs_base=True,
    kind="elementwise",
    reduce=enlargements,
    cost="two passes over the parents",
)
def ramplus_tl(
    tensors: Sequence[torch.Tensor],
    base: torch.Tensor | None,
    *,
    reduced: Sequence[float],
    r: float,
    alpha: float,
    epsilon: float,
) -> torch.Tensor:
    """Return the base plus the changes, averaged where shared and enlarged where not, float32."""
    vectors, counts = changes(tensors, base, epsilon)
    alone = 1 - several(counts)
    total = torch.zeros_like(counts)
    for vector, factor in zip(vectors, reduced, strict=True):
        total.add_(vector * alone, alpha=factor - 1).add_(vector)
    return total.div_(counts.clamp_(min=1)).add_(required(base))


def changes(
    tensors: Sequence[torch.Tensor], base: torch.Tensor | None, epsilon: float
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Return the task vectors, zero where a model changed nothing, and how many changed each entry (float32)."""
    vectors = [F.hardshrink(vector, epsilon) for vector in task_vectors(tensors, base)]
    counts = torch.zeros(vectors[0].shape, device=vectors[0].device)
    for vector in vectors:
        counts.add_(vector.sign().abs_())
    return vectors, counts


def several(counts: torch.Tensor) -> torch.Tensor:
    """Return 1 where more than one model changed an entry, else 0."""
    return (counts - 1).clamp_(0, 1)
