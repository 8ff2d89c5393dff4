"""What can be known to be wrong with a path of layers before it is run or merged."""

from __future__ import annotations

from collections.abc import Iterator

from evomerge.errors import ConfigError, Problem
from evomerge.merging.compatibility import shape_problems
from evomerge.merging.parents import Parents
from evomerge.merging.tensors import folding
from evomerge.recipes import Recipe, layer_of, path_of, with_layer

# Fields with which a layer computes something else in another place.
BY_POSITION = ("scale_attn_by_inverse_layer_idx",)


def path_problems(recipe: Recipe, parents: Parents) -> list[Problem]:
    """Return why the recipe's layers do not fit on one another, or its scales not into weights."""
    if not recipe.slices:
        return []
    found = list(_shapes(recipe, parents))
    for model in recipe.parents():
        for field in BY_POSITION:
            if path_of(recipe) and parents[model].config.get(field):
                what = f"its layers compute with their own numbers ({field}), which paths change"
                found.append(Problem(what, model, "set the field to false, if the model works without it"))
    try:
        folding(recipe, parents)
    except ConfigError as error:
        found += error.problems
    return found


def _shapes(recipe: Recipe, parents: Parents) -> Iterator[Problem]:
    """Yield the layers' tensors of a shape that no layer of the model has whose configuration the result gets."""
    donor = recipe.base_model or recipe.parents()[0]
    theirs: dict[str, set[tuple[int, ...]]] = {}
    for name, info in parents[donor].tensors.items():
        if layer_of(name) is not None:
            theirs.setdefault(with_layer(name, 0), set()).add(info.shape)
    for step in parents.plan(recipe):
        model, tensor = next(iter(step.inputs.items()))
        known = theirs.get(with_layer(tensor, 0))
        if step.planned.layer is not None and known and step.shape not in known:
            yield from shape_problems(tensor, {donor: min(known), model: step.shape})
