"""Layer swapping: the outer layers of one model around the inner layers of another.

Bandarkar et al. 2025, "Layer swapping for zero-shot cross-lingual transfer in large language models",
https://arxiv.org/abs/2410.01335. The first model is the one whose bottom and top layers are taken (the paper's
language expert), the second the one they are put into (its math expert). Between the two, transition layers are
averaged. What stands outside the layers (embeddings, the last norm, the head) stays the second model's, as "swapped
into" says; ``outside`` changes that.

The numbers of layers are given as shares of the merged model's, so that one recipe fits models of any depth, and
rounded to whole layers; the defaults are the paper's five, two and one of 32 layers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from evomerge.merging.method import NOWHERE, Parameter, Place, merge_method


def _share(name: str, default: float, high: float, searchable: bool, description: str) -> Parameter:
    return Parameter(name, default, 0.0, high, False, searchable, description, minimum=0.0, maximum=1.0, one_value=True)


@merge_method(
    "layer_swap",
    parameters=(
        _share("bottom", 5 / 32, 0.4, True, "share of the layers, from the bottom, that are the first model's"),
        _share("top", 2 / 32, 0.4, True, "share of the layers, from the top, that are the first model's"),
        _share("transition", 1 / 32, 0.2, True, "share of the layers averaged at each of the two seams"),
        _share("mix", 0.5, 1.0, False, "share of the first model in the averaged layers"),
        _share("outside", 0.0, 1.0, False, "share of the first model in embeddings, last norm and head"),
    ),
    summary="bottom and top layers of the first model, middle layers of the second, averages between them",
    paper="Bandarkar et al. 2025, https://arxiv.org/abs/2410.01335",
    formula="a θ₁ + (1−a) θ₂,  a = 1 in the bottom and top layers, ½ in the transition layers, 0 elsewhere",
    needs_base=False,
    kind="elementwise",
    min_models=2,
    max_models=2,
    ordered=True,
)
def layer_swap(
    tensors: Sequence[torch.Tensor],
    base: torch.Tensor | None,
    *,
    bottom: float,
    top: float,
    transition: float,
    mix: float,
    outside: float,
    place: Place = NOWHERE,
) -> torch.Tensor:
    """Return the first model's tensor, the second's or (float32) the average, as the tensor's layer says."""
    share = outside if place.layer is None else _first_share(place, bottom, top, transition, mix)
    if share in (0, 1):
        return tensors[0 if share else 1]
    return (tensors[0].float() * share).add_(tensors[1], alpha=1 - share)


def _first_share(place: Place, bottom: float, top: float, transition: float, mix: float) -> float:
    """Return the first model's share in a tensor of a layer; outer layers win where shares overlap."""
    below, above, seam = (int(share * place.num_layers + 0.5) for share in (bottom, top, transition))
    layer = place.layer or 0
    from_top = place.num_layers - 1 - layer
    if layer < below or from_top < above:
        return 1.0
    # A seam lies only where there are layers of the first model.
    at_bottom = below > 0 and layer < below + seam
    at_top = above > 0 and from_top < above + seam
    return mix if at_bottom or at_top else 0.0
