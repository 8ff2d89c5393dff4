"""One model's weights as they are: for stacking the layers of several models with ``slices``."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from evomerge.merging.method import Parameter, merge_method

SCALE = Parameter(
    "scale",
    default=1.0,
    low=0.0,
    high=1.5,
    per_model=True,
    searchable=False,
    description="factor on the weights (filters pick the tensors, such as o_proj and down_proj)",
)


@merge_method(
    "passthrough",
    parameters=(SCALE,),
    summary="one model's weights as they are; with slices, layers of several models stacked",
    paper="no paper; mergekit's `passthrough`, used for stacked models such as Goliath-120B",
    formula="s θ",
    needs_base=False,
    kind="elementwise",
    max_models=1,
)
def passthrough(tensors: Sequence[torch.Tensor], base: torch.Tensor | None, *, scale: Sequence[float]) -> torch.Tensor:
    """Return the only tensor, times ``scale`` unless that is 1."""
    return tensors[0] if scale[0] == 1 else tensors[0].float() * scale[0]
