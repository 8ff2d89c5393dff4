"""DARE: drop entries of task vectors at random and rescale the rest, then sum them or elect signs as TIES
does.

Yu et al. 2024, "Language models are Super Mario: absorbing abilities from homologous models as a free lunch",
https://arxiv.org/abs/2311.03099.

What is drawn is one uniform number for each entry (see `evomerge.merging.draws`), from the seed alone; an entry is
kept if its number is below the density, which is rounded to 2^-16. So the same entries are kept in every merge of a
run (a search would otherwise chase noise), and a higher density keeps what a lower one kept. Kept entries are divided
by the density, as in the paper; mergekit multiplies by the ratio of the L1 norms before and after, which estimates
the same factor from the drawn mask.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from evomerge.errors import MergeError
from evomerge.merging import fused
from evomerge.merging.draws import Draws, draws, limit
from evomerge.merging.magnitudes import INTEGERS
from evomerge.merging.method import Parameter, merge_method, switch
from evomerge.merging.task_vectors import (
    DENSITY,
    LAMBDA,
    WEIGHT,
    elected_sum,
    factors,
    normalize_switch,
    required,
    task_vectors,
    weighted_sum,
)


def drawn(tensors: Sequence[torch.Tensor], base: torch.Tensor | None, seeds: Sequence[int] | None) -> list[Draws]:
    """Return the draws of each model.

    Raises:
        MergeError: not one seed per tensor.
    """
    if seeds is None or len(seeds) != len(tensors):
        raise MergeError(f"DARE draws at random: it needs one seed per tensor, {len(tensors)} of them")
    return [draws(seed) for seed in seeds]


def drop(vector: torch.Tensor, drawn: torch.Tensor, density: float) -> torch.Tensor:
    """Return the vector with each entry kept at probability ``density``.

    Args:
        vector: flat; overwritten.
        drawn: one draw per entry, int16.
        density: to be kept.
    """
    bound = limit(density)
    if bound == limit(1):
        return vector
    if bound == limit(0):
        return vector.zero_()
    # All bits set where the draw is below the bound, none elsewhere; ten times faster than a mask of truth values.
    mask = drawn.to(vector.device).clamp(bound - 1, bound).sub_(bound)
    bits = vector.view(INTEGERS[vector.dtype])
    bits.bitwise_and_(mask.to(bits.dtype))
    return vector


_RESCALE = switch("rescale", True, "divide the kept entries by the density")


def _parameters(normalize: bool) -> tuple[Parameter, ...]:
    return (WEIGHT, DENSITY, LAMBDA, normalize_switch(normalize), _RESCALE)


@merge_method(
    "dare_linear",
    parameters=_parameters(False),
    summary="drops task-vector entries at random, rescales the rest and sums",
    paper="Yu et al. 2024, https://arxiv.org/abs/2311.03099",
    formula="θ₀ + λ Σ wᵢ δ̃ᵢ,  δ̃ᵢ = mᵢ ⊙ δᵢ / pᵢ,  mᵢ ~ Bernoulli(pᵢ)",
    needs_base=True,
    kind="elementwise",
    randomised=True,
    prepare=drawn,
    ignored=("int8_mask",),
)
def dare_linear(
    tensors: Sequence[torch.Tensor],
    base: torch.Tensor | None,
    *,
    prepared: Sequence[torch.Tensor],
    weight: Sequence[float],
    density: Sequence[float],
    lambda_: float,
    normalize: bool,
    rescale: bool,
) -> torch.Tensor:
    """Return the base plus λ times the weighted sum of the thinned task vectors, float32."""
    vectors = [drop(*each) for each in zip(task_vectors(tensors, base), prepared, density, strict=True)]
    scales = [
        w / p if rescale and p > 0 else w for w, p in zip(factors(weight, normalize, lambda_), density, strict=True)
    ]
    return weighted_sum(required(base), vectors, scales, False, 1.0)


@merge_method(
    "dare_ties",
    parameters=_parameters(False),
    summary="drops task-vector entries at random, rescales the rest, then elects signs as TIES does",
    paper="Yu et al. 2024, https://arxiv.org/abs/2311.03099",
    formula="θ₀ + λ Σ_{i∈A} wᵢ δ̃ᵢ,  δ̃ᵢ as in dare_linear,  A as in ties",
    needs_base=True,
    kind="elementwise",
    fused=True,
    randomised=True,
    prepare=drawn,
    ignored=("int8_mask",),
)
def dare_ties(
    tensors: Sequence[torch.Tensor],
    base: torch.Tensor | None,
    *,
    prepared: Sequence[torch.Tensor],
    weight: Sequence[float],
    density: Sequence[float],
    lambda_: float,
    normalize: bool,
    rescale: bool,
) -> torch.Tensor:
    """Return the base plus λ times the sign-elected sum of the thinned task vectors, float32."""
    start = required(base)
    if fused.fits(start):
        kept = [(draws, limit(p), p if rescale and p > 0 else 1.0) for draws, p in zip(prepared, density, strict=True)]
        cuts = [fused.drop(start.device, *each) for each in kept]
        merged = fused.elected(start, tensors, cuts, weight, normalize, lambda_)
        if merged is not None:
            return merged
    vectors = [drop(*each) for each in zip(task_vectors(tensors, start), prepared, density, strict=True)]
    if rescale:
        vectors = [v.div_(p) if 0 < p < 1 else v for v, p in zip(vectors, density, strict=True)]
    return elected_sum(start, vectors, weight, normalize, lambda_)
