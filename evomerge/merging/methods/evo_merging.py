"""Evo-Merging: LoRA adapters made sparse and added up with scales of either sign, factor by factor.

Chen et al. 2025, "Black-box model merging for Language-Model-as-a-Service with massive model repositories",
https://arxiv.org/abs/2509.12951; reference: the authors' code (Chansl-Lucky/Black-Box-Merging). With Aᵢ and Bᵢ the
matrices of adapter i, αᵢ the density that *sparsity-based denoising* searches and βᵢ the weight that *sign-aware
scaling* searches,

    A = Σ βᵢ S(Aᵢ, αᵢ),  B = Σ βᵢ Bᵢ,  θ = θ₀ + s B A,

where S keeps the entries of largest magnitude of each Aᵢ and sets the rest to zero. Only A is made sparse (the
paper's "asymmetric sparsification"). The sum is one of factors, not of changes: it holds Bᵢ Aⱼ of different adapters
too, and the weight counts squared in a model's own part, so both −1 and 1 alone are the whole change. The result is
an adapter of the same rank.

As the authors' code has it: round(α · n) entries are kept, at least one unless α is 0, and all that are as large as
the smallest of them. Different from it: each adapter's own scale s goes with its B, where the code takes the first
one's for all. What the paper has no word on is a change that is no such product (a whole model, DoRA, a module
trained as a whole): it is a task vector δᵢ, and βᵢ S(δᵢ, αᵢ) is added.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from evomerge.checkpoints import Factors
from evomerge.errors import MergeError
from evomerge.merging.method import Parameter, merge_method
from evomerge.merging.task_vectors import required, task_vectors, weighted_sum

WEIGHT = Parameter(
    "weight",
    default=0.5,
    low=-1.5,
    high=1.5,
    per_model=True,
    searchable=True,
    description="β: factor on both matrices of the model's adapter, of either sign",
    required=True,
)
DENSITY = Parameter(
    "density",
    default=1.0,
    low=0.0,
    high=1.0,
    per_model=True,
    searchable=True,
    description="α: share of the entries of the adapter's A that are kept, the largest",
    minimum=0.0,
    maximum=1.0,
)


@merge_method(
    "evo_merging",
    parameters=(WEIGHT, DENSITY),
    summary="sums LoRA adapters factor by factor, each A made sparse, with weights of either sign",
    paper="Chen et al. 2025, https://arxiv.org/abs/2509.12951",
    formula="θ₀ + s (Σ βᵢ Bᵢ) (Σ βᵢ S(Aᵢ, αᵢ)),  S = the α n entries of largest magnitude, the rest zero",
    needs_base=True,
    kind="matrix",
    factored=True,
    others="where a model's change is no product B·A of an adapter, it is a task vector: the sum gains βᵢ S(δᵢ, αᵢ)",
    cost="one pass over the base and the adapters, with a selection in each A",
)
def evo_merging(
    tensors: Sequence[torch.Tensor],
    base: torch.Tensor | None,
    *,
    factors: Sequence[Factors | None] | None,
    weight: Sequence[float],
    density: Sequence[float],
) -> torch.Tensor:
    """Return the base plus the product of the summed factors, and what is no product, float32.

    Raises:
        MergeError: the adapters have different ranks, which `evomerge.merging.checks` refuses beforehand.
    """
    start = required(base)
    changes = factors or [None] * len(tensors)
    whole = [number for number, change in enumerate(changes) if change is None]
    vectors = task_vectors([tensors[number] for number in whole], start)
    kept = [largest_kept(vector, density[number]) for number, vector in zip(whole, vectors, strict=True)]
    total = weighted_sum(start, kept, [weight[number] for number in whole], normalize=False, factor=1.0)
    pairs = [
        (change, scale, share)
        for change, scale, share in zip(changes, weight, density, strict=True)
        if change is not None and len(change.down)
    ]
    if not pairs:
        return total
    ranks = sorted({len(change.down) for change, _, _ in pairs})
    if len(ranks) > 1:
        raise MergeError(f"evo_merging adds up adapters of one rank, these have ranks {ranks}; use task_arithmetic")
    down, up = torch.zeros_like(pairs[0][0].down), torch.zeros_like(pairs[0][0].up)
    for change, scale, share in pairs:
        down.add_(largest_kept(change.down, share), alpha=scale)
        up.add_(change.up, alpha=scale)
    product = up @ down
    return total.add_((product.T if pairs[0][0].turned else product).reshape(total.shape))


def largest_kept(tensor: torch.Tensor, share: float) -> torch.Tensor:
    """Return the tensor with all but the largest magnitudes set to zero: S of the paper.

    Args:
        share: of the entries to keep; as many more are kept as are as large as the smallest of them.
    """
    size = tensor.numel()
    if share >= 1 or size == 0:
        return tensor
    if share <= 0:
        return torch.zeros_like(tensor)
    magnitudes = tensor.abs()
    smallest = magnitudes.flatten().kthvalue(size - max(1, round(size * share)) + 1).values
    return torch.where(magnitudes >= smallest, tensor, 0)
