"""PCB-Merging: weigh each entry of each task vector by its size and by its agreement with the other tasks.

Du et al. 2024, "Parameter competition balancing for model merging", https://arxiv.org/abs/2410.02396. Reference: the
authors' ``pcb-merging.py``, whose numbers these are; the paper writes softmax where the code has exp and tanh.
Differences: by tensor, where the code sees the whole model as one vector; a density for each model; where the code
divides zero by zero, the best entry counts, or none if all are alike (as in a tensor of one entry, which stays the
base's).

What is prepared: what needs the entries in order, which are the magnitudes between which task vectors are clamped, and
from which score on entries count at the default density. Another density takes a selection in each merge.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch

from evomerge.merging.differences import differences, optional_weight, sum_on
from evomerge.merging.method import merge_method
from evomerge.merging.state import state_class
from evomerge.merging.task_vectors import DENSITY, LAMBDA

CLAMPED = 0.0001  # share of the smallest and of the largest magnitudes that are clamped
NO_DIVISOR = 1e-12  # the reference's bound for a sum of scores
SCORED = replace(
    DENSITY,
    default=0.1,
    low=0.02,
    high=0.5,
    description="share of the task vector's entries that count, those of highest score",
)


@state_class
class Bounds(NamedTuple):
    """Smallest and largest number of one model's entries."""

    low: float
    high: float


@state_class
class Clamps(NamedTuple):
    """For each model, between which magnitudes it is clamped, and between which scores at the default density."""

    magnitudes: list[Bounds]
    counted: list[Bounds]


def clamps(tensors: Sequence[torch.Tensor], base: torch.Tensor | None) -> Clamps:
    """Return what each task vector's entries are clamped to."""
    vectors = differences(tensors, base)
    magnitudes = [_bounds(vector.abs(), CLAMPED, CLAMPED) for vector in vectors]
    return Clamps(magnitudes, [_counted(score, float(SCORED.default)) for score in scores(vectors, magnitudes)])


def score_bounds(
    tensors: Sequence[torch.Tensor],
    base: torch.Tensor | None,
    *,
    prepared: Clamps,
    density: Sequence[float],
) -> list[Bounds]:
    """Return each model's score from which on entries count, and its largest."""
    if all(share == SCORED.default for share in density):
        return prepared.counted
    return [
        _counted(*each) for each in zip(scores(differences(tensors, base), prepared.magnitudes), density, strict=True)
    ]


@merge_method(
    "pcb",
    parameters=(optional_weight(), SCORED, LAMBDA),
    summary="weighs each entry of a task vector by its size within the task and its agreement across tasks",
    paper="Du et al. 2024, https://arxiv.org/abs/2410.02396",
    formula="θ₀ + λ Σ β̂ᵢ ⊙ wᵢδᵢ / Σ β̂ᵢ,  βᵢ = exp(n·norm(|δᵢ|)²) ⊙ tanh(δᵢ ⊙ Σ δⱼ),  β̂ᵢ = norm(largest of βᵢ)",
    needs_base=True,
    kind="elementwise",
    prepare=clamps,
    reduce=score_bounds,
    cost="one pass over the parents; a selection from each if `density` is not the default",
)
def pcb(
    tensors: Sequence[torch.Tensor],
    base: torch.Tensor | None,
    *,
    prepared: Clamps,
    reduced: Sequence[Bounds],
    weight: Sequence[float],
    density: Sequence[float],
    lambda_: float,
) -> torch.Tensor:
    """Return the base plus λ times the balanced mean of the task vectors, float32."""
    vectors = differences(tensors, base)
    mixed, divisor = torch.zeros_like(vectors[0]), torch.zeros_like(vectors[0])
    balanced = zip(vectors, scores(vectors, prepared.magnitudes), prepared.magnitudes, reduced, weight, strict=True)
    for vector, score, magnitudes, counted, share in balanced:
        scale = _normalised(score, counted)
        divisor.add_(scale)
        clamped = vector.abs().clamp_(magnitudes.low, magnitudes.high).mul_(vector.sign())
        mixed.add_(clamped.mul_(scale), alpha=share)
    return sum_on(base, [mixed.div_(divisor.clamp_(min=NO_DIVISOR))], [1.0], lambda_)


def scores(vectors: Sequence[torch.Tensor], magnitudes: Sequence[Bounds]) -> Iterator[torch.Tensor]:
    """Yield βᵢ: intra-balancing (exp of the normalised size) times inter-balancing (tanh of the agreement)."""
    total = torch.zeros_like(vectors[0])
    for vector in vectors:
        total.add_(vector)
    for vector, bounds in zip(vectors, magnitudes, strict=True):
        yield _normalised(vector.abs(), bounds).square_().mul_(len(vectors)).exp_().mul_((vector * total).tanh_())


def _normalised(numbers: torch.Tensor, bounds: Bounds) -> torch.Tensor:
    """Return the numbers clamped to the bounds and mapped to [0, 1]; written over the numbers."""
    if bounds.high <= bounds.low:
        return numbers.zero_()
    return numbers.clamp_(bounds.low, bounds.high).sub_(bounds.low).div_(bounds.high - bounds.low)


def _counted(score: torch.Tensor, density: float) -> Bounds:
    """Return the scores from the least that counts to the best; the best entry counts unless the density is 0."""
    bounds = _bounds(score, 1 - density, 0.0)
    if bounds.low < bounds.high or not density or score.numel() < 2:
        return bounds
    return bounds._replace(low=float(score.kthvalue(score.numel() - 1).values))


def _bounds(numbers: torch.Tensor, below: float, above: float) -> Bounds:
    """Return the numbers that have a share ``below`` under them and a share ``above`` over them.

    The places in the rising order are the reference's: ⌊n·below⌋ and ⌊n·(1−above) − 1⌋.
    """
    size = numbers.numel()
    if size == 0:
        return Bounds(0.0, 0.0)
    places = min(int(size * below), size - 1), max(int(size * (1 - above) - 1), 0)
    low, high = (float(numbers.kthvalue(place + 1).values) for place in places)
    return Bounds(low, high)
