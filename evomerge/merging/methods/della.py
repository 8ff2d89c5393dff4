"""DELLA: drop entries of task vectors at random, small ones more often than large ones, and rescale the rest.

Deep, Bhardwaj and Poria 2024, "DELLA-Merging: reducing interference in model merging through magnitude-based
sampling", https://arxiv.org/abs/2406.11617 (MagPrune). In each row the entry of smallest magnitude is kept at
probability d − ε, the largest at d + ε, those between by their rank, so that d are kept on average.

As in mergekit, vectors are one row, and of tensors with more than two dimensions the entries along the second are
ranked against each other. Rescaling is mergekit's too: all kept entries of a tensor by one factor, which restores the
L1 norm of the task vector; here the factor is the one expected of the draw, not the one that this draw would need.
The paper divides each entry by its own probability. Where d ± ε would leave [0, 1], which mergekit refuses, ε is made
as small as it has to be, so the mean share stays d.

Draws are as in `evomerge.merging.methods.dare`: from the seed alone, so the same entries are kept in every merge of a
run, and a higher density keeps what a lower one kept. Ranks are kept to 1/255 of a row, one byte for each entry of
each parent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from evomerge.errors import MergeError
from evomerge.merging.chunks import over_chunks
from evomerge.merging.draws import LEVELS, Draws, draws
from evomerge.merging.magnitudes import INTEGERS
from evomerge.merging.method import Parameter, merge_method, switch
from evomerge.merging.state import PerEntry, state_class
from evomerge.merging.task_vectors import (
    DENSITY,
    LAMBDA,
    NO_NORM,
    WEIGHT,
    elected_sum,
    normalize_switch,
    required,
    task_vectors,
    weighted_sum,
)

TOP = 255  # the rank of a row's largest entry

EPSILON = Parameter(
    "epsilon",
    default=0.15,
    low=0.0,
    high=0.3,
    per_model=True,
    searchable=True,
    description="how far the probabilities to be kept spread around the density: small entries below, large ones above",
    minimum=0.0,
    maximum=1.0,
)


@state_class
class Ranked(NamedTuple):
    """What the draws of one model depend on.

    ``rank`` is that of each entry in its row, 0 to TOP (uint8); ``norm`` is Σ |δ|, ``upper`` Σ r |δ| where r is the
    rank as a share of TOP.
    """

    rank: PerEntry
    draws: Draws
    norm: float
    upper: float


Chunk = tuple[torch.Tensor, torch.Tensor, float, float]  # `Ranked` as a chunk of entries sees it


def ranked(
    tensors: Sequence[torch.Tensor],
    base: torch.Tensor | None,
    seeds: Sequence[int] | None,
    shape: Sequence[int],
) -> list[Ranked]:
    """Return each model's draws and the ranks of its entries.

    Raises:
        MergeError: not one seed per tensor.
    """
    if seeds is None or len(seeds) != len(tensors):
        raise MergeError(f"DELLA draws at random: it needs one seed per tensor, {len(tensors)} of them")
    start = required(base)
    return [_ranked(tensor, start, shape, seed) for tensor, seed in zip(tensors, seeds, strict=True)]


def _ranked(tensor: torch.Tensor, base: torch.Tensor, shape: Sequence[int], seed: int) -> Ranked:
    size = tensor.numel()
    length = 1 if size == 0 else size if len(shape) < 2 else shape[1]
    blocks = 1 if size == 0 or len(shape) < 2 else shape[0]
    each = size // blocks
    rank = torch.empty(blocks, length, each // length, dtype=torch.uint8, device=tensor.device)
    levels = torch.linspace(0, TOP, length).round_() if length > 1 else torch.tensor([TOP / 2]).round_()
    levels = levels.to(tensor.device, torch.uint8).view(1, length, 1)

    def part(first: int, last: int) -> torch.Tensor:
        vector = tensor[first * each : last * each] - base[first * each : last * each]
        magnitude = vector.abs_().view(last - first, length, -1)
        ranks = rank[first:last].scatter_(1, rising(magnitude), levels.expand_as(magnitude))
        share = ranks.float().div_(TOP)
        return torch.stack([magnitude.double().sum(), share.mul_(magnitude).double().sum()])

    norm, upper = torch.stack(over_chunks(part, blocks, tensor.device, entries=each)).sum(0).tolist()
    return Ranked(PerEntry(rank.view(-1)), draws(seed), norm, upper)


def rising(magnitude: torch.Tensor) -> torch.Tensor:
    """Return the places along the second dimension in the order of rising magnitude (int64).

    On the CPU what is sorted are integers, the magnitude's bits before the place: several times faster than sorting
    places by magnitude.
    """
    if magnitude.device.type != "cpu":
        return magnitude.argsort(dim=1)
    length, bits = magnitude.shape[1], magnitude.view(INTEGERS[magnitude.dtype])
    narrow = bits.dtype == torch.int16 and length <= 1 << 16
    keys = bits.int() << 16 if narrow else bits.long() << 32
    keys |= torch.arange(length, dtype=keys.dtype).view(1, length, 1)
    keys.numpy().sort(axis=1)
    return keys.bitwise_and_((1 << (16 if narrow else 32)) - 1).long()


def thin(vector: torch.Tensor, ranks: torch.Tensor, drawn: torch.Tensor, density: float, epsilon: float) -> None:
    """Set entries to zero, each kept at the probability that its rank gives it.

    Args:
        vector: flat; overwritten.
        ranks: uint8, 0 to TOP.
        drawn: one draw per entry, int16.
        density: share to be kept on average.
        epsilon: how much less of the smallest, and more of the largest.
    """
    if density >= 1:
        return
    spread = narrowed(density, epsilon)
    bound = ranks.float().mul_(2 * spread / TOP * LEVELS).add_((density - spread - 0.5) * LEVELS)
    vector.mul_(bound.sub_(drawn.to(bound.device)).sign_().relu_())


def narrowed(density: float, epsilon: float) -> float:
    """Return the epsilon with which all probabilities lie in [0, 1]."""
    return max(0.0, min(epsilon, density, 1 - density))


def factor(norm: float, upper: float, density: float, epsilon: float) -> float:
    """Return ‖δ‖₁ divided by what is expected of it after the draw; 1 if either is almost zero; see `Ranked`."""
    spread = narrowed(density, epsilon)
    expected = (density - spread) * norm + 2 * spread * upper
    return 1.0 if density >= 1 or min(expected, norm) < NO_NORM else norm / expected


_RESCALE = switch("rescale", True, "scale what is kept so that the task vector's L1 norm is kept on average")
_PAPER = "Deep, Bhardwaj and Poria 2024, https://arxiv.org/abs/2406.11617"


def _parameters(normalize: bool) -> tuple[Parameter, ...]:
    return (WEIGHT, DENSITY, EPSILON, LAMBDA, normalize_switch(normalize), _RESCALE)


@merge_method(
    "della_linear",
    parameters=_parameters(False),
    summary="drops task-vector entries at random, small ones more often, rescales the rest and sums",
    paper=_PAPER,
    formula="θ₀ + λ Σ wᵢ δ̃ᵢ,  δ̃ᵢ = sᵢ mᵢ ⊙ δᵢ,  mᵢ ~ Bernoulli(dᵢ − εᵢ + 2εᵢ · rank in row),  sᵢ = ‖δᵢ‖₁ / E‖mᵢ ⊙ δᵢ‖₁",
    needs_base=True,
    kind="elementwise",
    randomised=True,
    prepare=ranked,
    ignored=("int8_mask",),
)
def della_linear(
    tensors: Sequence[torch.Tensor],
    base: torch.Tensor | None,
    *,
    prepared: Sequence[Chunk],
    weight: Sequence[float],
    density: Sequence[float],
    epsilon: Sequence[float],
    lambda_: float,
    normalize: bool,
    rescale: bool,
) -> torch.Tensor:
    """Return the base plus λ times the weighted sum of the thinned task vectors, float32."""
    vectors = _thinned(tensors, base, prepared, density, epsilon, rescale)
    return weighted_sum(required(base), vectors, weight, normalize, lambda_)


@merge_method(
    "della",
    parameters=_parameters(True),
    summary="drops task-vector entries at random, small ones more often, rescales, then elects signs as TIES does",
    paper=_PAPER,
    formula="θ₀ + λ Σ_{i∈A} wᵢ δ̃ᵢ / Σ_{i∈A} wᵢ,  δ̃ᵢ as in della_linear,  A as in ties",
    needs_base=True,
    kind="elementwise",
    randomised=True,
    prepare=ranked,
    ignored=("int8_mask",),
)
def della(
    tensors: Sequence[torch.Tensor],
    base: torch.Tensor | None,
    *,
    prepared: Sequence[Chunk],
    weight: Sequence[float],
    density: Sequence[float],
    epsilon: Sequence[float],
    lambda_: float,
    normalize: bool,
    rescale: bool,
) -> torch.Tensor:
    """Return the base plus λ times the disjoint mean of the thinned task vectors, float32."""
    vectors = _thinned(tensors, base, prepared, density, epsilon, rescale)
    return elected_sum(required(base), vectors, weight, normalize, lambda_)


def _thinned(
    tensors: Sequence[torch.Tensor],
    base: torch.Tensor | None,
    chunks: Sequence[Chunk],
    densities: Sequence[float],
    epsilons: Sequence[float],
    rescale: bool,
) -> list[torch.Tensor]:
    vectors = task_vectors(tensors, base)
    for vector, chunk, density, epsilon in zip(vectors, chunks, densities, epsilons, strict=True):
        ranks, drawn, norm, upper = chunk
        thin(vector, ranks, drawn, density, epsilon)
        if rescale and (scale := factor(norm, upper, density, epsilon)) != 1:
            vector.mul_(scale)
    return vectors
