"""Spherical interpolation between two models.

Shoemake 1985, "Animating rotation with quaternion curves", https://doi.org/10.1145/325334.325242, applied to
each weight tensor as one long vector.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from evomerge.merging.chunks import over_chunks
from evomerge.merging.method import Parameter, merge_method
from evomerge.merging.sums import weighted

COLINEAR = 0.9995  # |cos θ| above which directions count as parallel and are interpolated linearly
TINY = 1e-8  # a norm below this is no direction (both bounds are mergekit's)

T = Parameter(
    "t",
    default=0.5,
    low=0.0,
    high=1.0,
    per_model=False,
    searchable=True,
    description="0 gives the base, 1 the other model",
    required=True,
)


def cosine(tensors: Sequence[torch.Tensor], base: torch.Tensor | None) -> float:
    """Return cos θ between the base and the other tensor, each taken as one vector.

    Summed in float64 and rounded to 12 digits, so that the number of threads cannot change it.
    """
    if base is None or base.numel() == 0:
        return 0.0
    first, second = base.reshape(-1), tensors[0].reshape(-1)

    def products(start: int, stop: int) -> torch.Tensor:
        x, y = first[start:stop].double(), second[start:stop].double()
        return torch.stack([x @ y, x @ x, y @ y])

    dot, *squares = torch.stack(over_chunks(products, first.numel(), first.device)).sum(0).tolist()
    norms = [math.sqrt(s) if math.sqrt(s) > TINY else 1.0 for s in squares]
    return round(min(1.0, max(-1.0, dot / norms[0] / norms[1])), 12)


@merge_method(
    "slerp",
    parameters=(T,),
    summary="spherical interpolation between the base and one other model",
    paper="Shoemake 1985, https://doi.org/10.1145/325334.325242",
    formula="sin((1−t)θ)/sin θ · θ₀ + sin(tθ)/sin θ · θ₁,  cos θ = ⟨θ₀, θ₁⟩/(‖θ₀‖‖θ₁‖)",
    needs_base=True,
    kind="elementwise",
    fused=True,
    min_models=2,
    max_models=2,
    prepare=cosine,
)
def slerp(tensors: Sequence[torch.Tensor], base: torch.Tensor | None, *, t: float, prepared: float) -> torch.Tensor:
    """Return the point at ``t`` on the arc from ``base`` to the only tensor, float32.

    Nearly parallel or opposite tensors (|cos θ| > 0.9995) are interpolated linearly.
    """
    if base is None or not tensors:
        return tensors[0] if base is None else base
    if abs(prepared) > COLINEAR:
        share, other_share = 1 - t, t
    else:
        angle = math.acos(prepared)
        share = math.sin((1 - t) * angle) / math.sin(angle)
        other_share = math.sin(t * angle) / math.sin(angle)
    return weighted([base, tensors[0]], [share, other_share])
