"""DARE: drop entries of task vectors at random and rescale the rest, then sum them or elect signs as TIES
does.

Yu et al. 2024, "Language models are Super Mario: absorbing abilities from homologous models as a free lunch",
https://arxiv.org/abs/2311.03099.

What is drawn is one uniform number for each entry, from the seed alone; an entry is kept if its number is
below the density. So the same entries are kept in every merge of a run (a search would otherwise chase
noise), and a higher density keeps what a lower one kept. Kept entries are divided by the density, as in the
paper; mergekit multiplies by the ratio of the L1 norms before and after, which estimates the same factor from
the drawn mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from evomerge.errors import MergeError
from evomerge.merging.method import Parameter, merge_method, switch
from evomerge.merging.task_vectors import (
    DENSITY,
    LAMBDA,
    WEIGHT,
    elected_sum,
    normalize_switch,
    required,
    task_vectors,
    weighted_sum,
)


class DrawnVector(NamedTuple):
    """A task vector and a uniform draw in [0, 1) for each entry (float32)."""

    vector: torch.Tensor
    draw: torch.Tensor


def drawn_vectors(
    tensors: Sequence[torch.Tensor], base: torch.Tensor | None, seeds: Sequence[int] | None
) -> list[DrawnVector]:
    """Return the task vectors with their draws; always drawn on the CPU, whole, so no device or chunk changes
    them.

    Raises:
        MergeError: not one seed per tensor.
    """
    if seeds is None or len(seeds) != len(tensors):
        raise MergeError(f"DARE draws at random: it needs one seed per tensor, {len(tensors)} of them")
    vectors = task_vectors(tensors, base)
    return [DrawnVector(vector, _draw(vector.shape, seed)) for vector, seed in zip(vectors, seeds, strict=True)]


def _draw(shape: torch.Size, seed: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)


def drop(drawn: DrawnVector, density: float, rescale: bool) -> torch.Tensor:
    """Return the vector with each entry kept at probability ``density``, over it if ``rescale``; float32."""
    if density >= 1:
        return drawn.vector.float()
    kept = torch.lt(drawn.draw, density, out=torch.empty_like(drawn.draw)).mul_(drawn.vector)
    return kept.div_(density) if rescale and density > 0 else kept


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
    prepare=drawn_vectors,
    ignored=("int8_mask",),
)
def dare_linear(
    tensors: Sequence[torch.Tensor],
    base: torch.Tensor | None,
    *,
    prepared: Sequence[DrawnVector],
    weight: Sequence[float],
    density: Sequence[float],
    lambda_: float,
    normalize: bool,
    rescale: bool,
) -> torch.Tensor:
    """Return the base plus λ times the weighted sum of the thinned task vectors, float32."""
    vectors = [drop(drawn, share, rescale) for drawn, share in zip(prepared, density, strict=True)]
    return weighted_sum(required(base), vectors, weight, normalize, lambda_)


@merge_method(
    "dare_ties",
    parameters=_parameters(False),
    summary="drops task-vector entries at random, rescales the rest, then elects signs as TIES does",
    paper="Yu et al. 2024, https://arxiv.org/abs/2311.03099",
    formula="θ₀ + λ Σ_{i∈A} wᵢ δ̃ᵢ,  δ̃ᵢ as in dare_linear,  A as in ties",
    needs_base=True,
    kind="elementwise",
    randomised=True,
    prepare=drawn_vectors,
    ignored=("int8_mask",),
)
def dare_ties(
    tensors: Sequence[torch.Tensor],
    base: torch.Tensor | None,
    *,
    prepared: Sequence[DrawnVector],
    weight: Sequence[float],
    density: Sequence[float],
    lambda_: float,
    normalize: bool,
    rescale: bool,
) -> torch.Tensor:
    """Return the base plus λ times the sign-elected sum of the thinned task vectors, float32."""
    vectors = [drop(drawn, share, rescale) for drawn, share in zip(prepared, density, strict=True)]
    return elected_sum(required(base), vectors, weight, normalize, lambda_)
