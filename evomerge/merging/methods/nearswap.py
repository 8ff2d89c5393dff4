"""NearSwap: where two models are close take the other one's number, where they are far apart keep nearly the base's.

alchemonaut 2024, https://huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001, as in mergekit's `nearswap`. In effect
each entry goes from the base towards the other model, by ``t`` at most.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from evomerge.merging.method import Parameter, merge_method
from evomerge.merging.task_vectors import required

NO_CHANGE = 1e-6  # a difference below this counts as this (mergekit's bound)

T = Parameter(
    "t",
    default=0.0001,
    low=0.0,
    high=0.01,
    per_model=False,
    searchable=True,
    description="how far an entry goes at most: 0 keeps the base, a large number takes the other model",
    required=True,
)


@merge_method(
    "nearswap",
    parameters=(T,),
    summary="moves each entry of the base towards the other model, by t at most",
    paper="alchemonaut 2024, https://huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001",
    formula="a θ₁ + (1−a) θ₀,  a = min(1, t / |θ₁ − θ₀|) for each entry",
    needs_base=True,
    kind="elementwise",
    min_models=2,
    max_models=2,
)
def nearswap(tensors: Sequence[torch.Tensor], base: torch.Tensor | None, *, t: float) -> torch.Tensor:
    """Return the base moved towards the only tensor, float32."""
    start = required(base)
    change = tensors[0].float() - start
    share = change.abs().clamp_(min=NO_CHANGE).reciprocal_().mul_(t).clamp_(0, 1)
    return change.mul_(share).add_(start)
