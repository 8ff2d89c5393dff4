"""LM-Cocktail: an average whose weights follow from each model's loss on a few examples.

Xiao et al. 2023, "LM-Cocktail: Resilient Tuning of Language Models via Model Merging",
https://arxiv.org/abs/2311.13534: the merge for a new task, of models already tuned for others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from evomerge.errors import MergeError
from evomerge.merging.method import Parameter, merge_method

TEMPERATURE = Parameter(
    "temperature",
    default=5.0,
    low=0.05,
    high=5.0,
    per_model=False,
    searchable=True,
    description="τ: small gives the model of least loss, large the plain average",
    minimum=1e-6,
)


def shares(statistics: Sequence[Mapping[str, torch.Tensor]] | None, count: int, temperature: float) -> list[float]:
    """Return softmax(−loss / τ) of ``count`` models; equal shares where losses are not known.

    Raises:
        MergeError: some models have a loss and others have none.
    """
    losses = [float(each["loss"]) for each in statistics or () if "loss" in each]
    if not losses:
        return [1 / count] * count
    if len(losses) < count:
        raise MergeError("lm_cocktail needs the loss of every model; gather `--kinds loss` of all of them at once")
    return torch.softmax(-torch.tensor(losses, dtype=torch.float64) / temperature, 0).tolist()


@merge_method(
    "lm_cocktail",
    parameters=(TEMPERATURE,),
    summary="average whose weights follow from the models' losses on a few examples",
    paper="Xiao et al. 2023, https://arxiv.org/abs/2311.13534",
    formula="Σ wᵢ θᵢ,  w = softmax(−Lᵢ / τ),  Lᵢ mean cross-entropy of a token",
    needs_base=False,
    kind="elementwise",
    statistics=("loss",),
)
def lm_cocktail(
    tensors: Sequence[torch.Tensor],
    base: torch.Tensor | None,
    *,
    statistics: Sequence[Mapping[str, torch.Tensor]] | None,
    temperature: float,
) -> torch.Tensor:
    """Return Σ wᵢ θᵢ, float32."""
    weights = shares(statistics, len(tensors), temperature)
    total = tensors[0].float() * weights[0]
    for tensor, share in zip(tensors[1:], weights[1:], strict=True):
        total.add_(tensor, alpha=share)
    return total
