"""Multi-SLERP: the weighted mean of directions, at the weighted mean of lengths.

Goddard 2025, "Multi-SLERP", https://goddard.blog/posts/multislerp-wow-what-a-cool-idea, as in mergekit's
`multislerp`. It goes to the tangent plane at the weighted mean m of the directions uᵢ, averages there and comes back.
The average there, Σ wᵢ (uᵢ − ⟨uᵢ, m̂⟩ m̂), is zero whatever the weights, because Σ wᵢ uᵢ is along m̂; so m̂ is where it
comes back to, and this direction and the mean length are all that is computed here.

Where the directions cancel, there is no mean direction; the weighted sum of the models is returned, which mergekit
does for two models only (it refuses more, among them task vectors that are all zero).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from evomerge.merging.inner_products import combined, norm, products
from evomerge.merging.method import Parameter, merge_method, switch
from evomerge.merging.methods.linear import normalised
from evomerge.merging.task_vectors import WEIGHT

EPS = Parameter(
    "eps",
    default=1e-8,
    low=0.0,
    high=1e-6,
    per_model=False,
    searchable=False,
    description="added to lengths before dividing by them; a mean direction shorter than this is none",
    minimum=0.0,
)


def shares(
    tensors: Sequence[torch.Tensor],
    base: torch.Tensor | None,
    *,
    prepared: Sequence[Sequence[float]],
    weight: Sequence[float],
    normalize_weights: bool,
    eps: float,
) -> list[float]:
    """Return each model's, or task vector's, share in the result.

    Raises:
        MergeError: weights of both signs that sum to zero cannot be normalised.
    """
    weights = normalised(weight, "multislerp", "normalize_weights") if normalize_weights else list(weight)
    lengths = [norm(prepared[i][i]) for i in range(len(tensors))]
    directed = [w / (length + eps) if length + eps > 0 else 0.0 for w, length in zip(weights, lengths, strict=True)]
    pairs = [(i, j) for i in range(len(tensors)) for j in range(len(tensors))]
    mean = norm(sum(directed[i] * directed[j] * prepared[i][j] for i, j in pairs))
    if mean == 0 or mean < eps:
        return weights
    length = sum(w * length for w, length in zip(weights, lengths, strict=True))
    return [share / mean * length for share in directed]


@merge_method(
    "multislerp",
    parameters=(WEIGHT, switch("normalize_weights", True, "divide the weights by their sum"), EPS),
    summary="mean direction of the models, or of their task vectors, at their mean length",
    paper="Goddard 2025, https://goddard.blog/posts/multislerp-wow-what-a-cool-idea",
    formula="(θ₀ +) (Σ wᵢ‖δᵢ‖) m/‖m‖,  m = Σ wᵢ δᵢ/‖δᵢ‖,  δᵢ = θᵢ (− θ₀)",
    needs_base=False,
    optional_base=True,
    kind="elementwise",
    fused=True,
    prepare=products,
    reduce=shares,
)
def multislerp(
    tensors: Sequence[torch.Tensor],
    base: torch.Tensor | None,
    *,
    reduced: Sequence[float],
    weight: Sequence[float],
    normalize_weights: bool,
    eps: float,
) -> torch.Tensor:
    """Return the models' mean on a sphere around the base (or zero), float32; a single model as it is."""
    return tensors[0] if len(tensors) == 1 else combined(tensors, base, reduced)
