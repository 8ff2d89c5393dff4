"""Fisher-weighted averaging: each entry is averaged in proportion to how much each model's predictions depend on it.

Matena and Raffel 2022, "Merging models with Fisher-weighted averaging", https://arxiv.org/abs/2111.09832. The Fisher
information is the diagonal one that `evomerge statistics` gathers. As in the authors' code, each model's is divided by
its size over the whole model, so that a model far from the optimum of its data does not win everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from evomerge.merging.method import Parameter, merge_method, switch
from evomerge.merging.methods.linear import normalised
from evomerge.merging.state import PerEntry

WEIGHT = Parameter(
    "weight",
    default=1.0,
    low=0.0,
    high=1.0,
    per_model=True,
    searchable=True,
    description="λᵢ, factor on the model's Fisher information",
    minimum=0.0,
)
FLOOR = Parameter(
    "floor",
    default=1e-6,
    low=0.0,
    high=1.0,
    per_model=False,
    searchable=False,
    description="smallest Fisher information, as a share of its root mean square; more pulls towards the mean",
    minimum=0.0,
)


def information(
    tensors: Sequence[torch.Tensor],
    base: torch.Tensor | None,
    *,
    statistics: Sequence[Mapping[str, torch.Tensor]] | None,
    normalize: bool,
) -> list[tuple[PerEntry, float]] | None:
    """Return each model's Fisher information with the factor that brings it to size one; None if one has none."""
    if statistics is None or not all("fisher" in each for each in statistics):
        return None
    sizes = [float(each.get("fisher_size", 0.0)) if normalize else 1.0 for each in statistics]
    return [(PerEntry(each["fisher"]), 1 / size if size else 1.0) for each, size in zip(statistics, sizes, strict=True)]


@merge_method(
    "fisher",
    parameters=(WEIGHT, FLOOR, switch("normalize", True, "divide each model's Fisher information by its size")),
    summary="average weighted, entry by entry, with each model's Fisher information",
    paper="Matena and Raffel 2022, https://arxiv.org/abs/2111.09832",
    formula="Σ λᵢ F̂ᵢ θᵢ / Σ λᵢ F̂ᵢ,  F̂ᵢ = max(Fᵢ / rms(Fᵢ), floor),  F diagonal Fisher information",
    needs_base=False,
    kind="elementwise",
    reduce=information,
    statistics=("fisher", "fisher_size"),
    others="a tensor without Fisher information is averaged with the weights λᵢ",
    cost="one pass over the parents and their Fisher information",
)
def fisher(
    tensors: Sequence[torch.Tensor],
    base: torch.Tensor | None,
    *,
    reduced: Sequence[tuple[torch.Tensor, float]] | None,
    weight: Sequence[float],
    floor: float,
    normalize: bool,
) -> torch.Tensor:
    """Return Σ λᵢ F̂ᵢ θᵢ / Σ λᵢ F̂ᵢ, float32; entries that no model depends on are averaged with the weights λᵢ."""
    shares = normalised(weight)
    mean = tensors[0].float() * shares[0]
    for tensor, share in zip(tensors[1:], shares[1:], strict=True):
        mean.add_(tensor, alpha=share)
    if reduced is None:
        return mean
    total, mass = torch.zeros_like(mean), torch.zeros_like(mean)
    for tensor, share, (entries, factor) in zip(tensors, shares, reduced, strict=True):
        pull = (entries.to(mean.device) * factor).clamp_(min=floor).mul_(share)
        mass += pull
        # From the mean, not from zero: equal models give that model exactly, whatever the rounding of the shares.
        total.addcmul_(pull, tensor - mean)
    return mean.add_(total.div_(mass.masked_fill_(mass == 0, 1.0)))
