"""Consensus merging: of a merged task vector, keep the entries that several tasks have a use for.

Wang et al. 2024, "Localizing task information for improved model merging and compression",
https://arxiv.org/abs/2405.07813. Reference: the authors' code (nik-dim/tall_masks). An entry is of use to a task if it
is in the task's TALL mask: the task moved it further than ``threshold`` times what lies between the task and the merged
model. Entries of use to fewer than ``agreement`` tasks are left at the base: with 2, the paper's value, those that no
task needs ("catastrophic") and those that one does ("selfish") go.

The masks depend on the merged task vector: the sum of task vectors (`consensus_ta`), or what TIES elects of them
(`consensus_ties`, the disjoint sum). Both are formed with a factor of 1 and the result is scaled by λ, as in the
paper. Weights, which the paper has not, scale the task vectors before everything else, so the masks do not change if
all are doubled. Trimming is by tensor and keeps ⌊density · n⌋ entries, as in `ties`; the authors' keeps one more and
counts through the whole model.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch

from evomerge.merging.differences import optional_weight, sum_on, weighted_differences
from evomerge.merging.magnitudes import Order, Trim, magnitude_orders, trimmed, trims
from evomerge.merging.method import Parameter, merge_method
from evomerge.merging.task_vectors import DENSITY, LAMBDA, elected_sum, required, task_vectors

THRESHOLD = Parameter(
    "threshold",
    default=0.4,
    low=0.2,
    high=0.6,
    per_model=True,
    searchable=True,
    description="times the distance to the merged model that an entry must have moved; less keeps more entries",
    minimum=0.0,
)
AGREEMENT = Parameter(
    "agreement",
    default=2,
    low=1,
    high=3,
    per_model=False,
    searchable=False,
    description="number of models to whom an entry must be of use; 0 keeps all",
    minimum=0.0,
)
DENSITY_OF_TIES = replace(DENSITY, default=0.2)


@merge_method(
    "consensus_ta",
    parameters=(optional_weight(), THRESHOLD, AGREEMENT, LAMBDA),
    summary="the sum of task vectors, where enough models agree with it",
    paper="Wang et al. 2024, https://arxiv.org/abs/2405.07813",
    formula="θ₀ + λ 1[Σᵢ mᵢ ≥ k] ⊙ τ,  mᵢ = 1[|wᵢδᵢ| > tᵢ |τ − wᵢδᵢ|],  τ = Σ wᵢ δᵢ",
    needs_base=True,
    kind="elementwise",
)
def consensus_ta(
    tensors: Sequence[torch.Tensor],
    base: torch.Tensor | None,
    *,
    weight: Sequence[float],
    threshold: Sequence[float],
    agreement: float,
    lambda_: float,
) -> torch.Tensor:
    """Return the base plus λ times the agreed part of the summed task vectors, float32."""
    vectors = weighted_differences(tensors, base, weight)
    merged = next(vectors)
    for vector in vectors:
        merged.add_(vector)
    vectors = weighted_differences(tensors, base, weight)
    return sum_on(base, [agreed(merged, vectors, threshold, agreement)], [1.0], lambda_)


def orders(tensors: Sequence[torch.Tensor], base: torch.Tensor | None) -> list[Order]:
    """Return the order of magnitudes of each task vector, from which any density is trimmed in one pass."""
    return magnitude_orders(tensors, required(base))


def cuts(
    tensors: Sequence[torch.Tensor],
    base: torch.Tensor | None,
    *,
    prepared: Sequence[Order],
    density: Sequence[float],
) -> list[Trim]:
    """Return how to trim each task vector to its density."""
    return trims(tensors, required(base), prepared, density)


@merge_method(
    "consensus_ties",
    parameters=(optional_weight(), DENSITY_OF_TIES, THRESHOLD, AGREEMENT, LAMBDA),
    summary="the sum of task vectors that TIES elects, where enough models agree with it",
    paper="Wang et al. 2024, https://arxiv.org/abs/2405.07813",
    formula="as consensus_ta with τ = Σ_{i∈A} wᵢ δ̂ᵢ,  A and δ̂ as in ties",
    needs_base=True,
    kind="elementwise",
    prepare=orders,
    reduce=cuts,
    cost="two passes over the parents",
)
def consensus_ties(
    tensors: Sequence[torch.Tensor],
    base: torch.Tensor | None,
    *,
    reduced: Sequence[Trim],
    weight: Sequence[float],
    density: Sequence[float],
    threshold: Sequence[float],
    agreement: float,
    lambda_: float,
) -> torch.Tensor:
    """Return the base plus λ times the agreed part of the elected sum, float32."""
    rounded = task_vectors(tensors, base)
    kept = [trimmed(vector, trim) for vector, trim in zip(rounded, reduced, strict=True)]
    merged = elected_sum(torch.zeros_like(rounded[0]), kept, weight, normalize=False, factor=1.0)
    vectors = weighted_differences(tensors, base, weight)
    return sum_on(base, [agreed(merged, vectors, threshold, agreement)], [1.0], lambda_)


def agreed(
    merged: torch.Tensor, vectors: Iterable[torch.Tensor], thresholds: Sequence[float], agreement: float
) -> torch.Tensor:
    """Return ``merged`` where at least ``agreement`` of the vectors' TALL masks are set, else 0."""
    uses = torch.zeros_like(merged)
    for vector, threshold in zip(vectors, thresholds, strict=True):
        distance = (merged - vector).abs_()
        # 1 in the task's mask, else 0 (Wang et al. 2024); much faster than a mask of truth values.
        uses.add_(vector.abs_().sub_(distance.mul_(threshold)).sign_().relu_())
    return uses.sub_(math.ceil(agreement) - 0.5).sign_().relu_().mul_(merged)
