"""Weighted averages of weights.

Wortsman et al. 2022, "Model soups: averaging weights of multiple fine-tuned models improves accuracy without
increasing inference time", https://arxiv.org/abs/2203.05482.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from evomerge.errors import MergeError
from evomerge.merging.method import Parameter, merge_method, switch
from evomerge.merging.sums import weighted

WEIGHT = Parameter(
    "weight",
    default=0.5,
    low=0.0,
    high=1.0,
    per_model=True,
    searchable=True,
    description="share of the model",
    required=True,
)


@merge_method(
    "linear",
    parameters=(WEIGHT, switch("normalize", True, "divide the weights by their sum")),
    summary="weighted average of the models' weights",
    paper="Wortsman et al. 2022, https://arxiv.org/abs/2203.05482",
    formula="Σ wᵢ θᵢ / Σ wᵢ  (without normalize: Σ wᵢ θᵢ)",
    needs_base=False,
    kind="elementwise",
    fused=True,
)
def linear(
    tensors: Sequence[torch.Tensor], base: torch.Tensor | None, *, weight: Sequence[float], normalize: bool
) -> torch.Tensor:
    """Return Σ wᵢ θᵢ, divided by Σ wᵢ if ``normalize``; summed in float32.

    Weights that are all zero have no average; with ``normalize`` they count as equal, so that a search that
    meets that corner of its space gets a model.

    Raises:
        MergeError: weights of both signs that sum to zero cannot be normalised.
    """
    shares = normalised(weight) if normalize else list(weight)
    return weighted(tensors, shares)


def normalised(weights: Sequence[float], method: str = "linear", setting: str = "normalize") -> list[float]:
    """Return the weights divided by their sum; equal shares if all are zero.

    Args:
        method: what messages call the method.
        setting: the switch that turns this off.

    Raises:
        MergeError: weights of both signs sum to zero.
    """
    if not any(weights):
        return [1 / len(weights)] * len(weights)
    total = sum(weights)
    if total == 0:
        raise MergeError(f"{method}: the weights {list(weights)} sum to zero; change them or set {setting}: false")
    return [weight / total for weight in weights]
