"""Layer routing: recipes that choose the path of the hidden states through layers of several models.

Akiba et al. 2025, "Evolutionary optimization of model merging recipes" (https://arxiv.org/abs/2403.13187), data-flow
space. Such a recipe is a `passthrough` of slices, each of one model; without scales it is mergekit's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from evomerge.recipes.recipe import Recipe


class PathStep(NamedTuple):
    """One step of a path: the hidden states are multiplied by ``scale``, then go through the layer."""

    model: str
    layer: int
    scale: float = 1.0


def path_of(recipe: Recipe) -> tuple[PathStep, ...] | None:
    """Return the path of a routed recipe; None for recipes that merge or change layers or have no slices."""
    if recipe.merge_method != "passthrough" or not recipe.slices:
        return None
    if recipe.parameters or any(len(e.sources) > 1 or e.parameters or e.sources[0].parameters for e in recipe.slices):
        return None
    return tuple(
        PathStep(each.sources[0].model, layer, 1.0 if each.input_scale is None else each.input_scale)
        for each in recipe.slices
        for layer in range(*each.sources[0].layer_range)
    )


def routed_recipe(path: Sequence[PathStep], **fields: Any) -> Recipe:
    """Return the recipe of a path of at least one step, with as few slices as can be.

    Args:
        fields: further fields of the recipe, such as ``outside`` or ``dtype``. An ``outside`` that the path implies,
            being the model of both its ends, is left out: mergekit then reads the recipe, if all scales are 1.
    """
    slices: list[dict[str, Any]] = []
    for previous, step in zip([None, *path], path, strict=False):
        if previous is not None and step == previous._replace(layer=previous.layer + 1):
            slices[-1]["sources"][0]["layer_range"][1] += 1
            continue
        slices.append({"sources": [{"model": step.model, "layer_range": [step.layer, step.layer + 1]}]})
        if step.scale != 1:
            slices[-1]["input_scale"] = step.scale
    if fields.get("outside") == path[0].model == path[-1].model:
        del fields["outside"]
    return Recipe.model_validate({"merge_method": "passthrough", "slices": slices, **fields})
