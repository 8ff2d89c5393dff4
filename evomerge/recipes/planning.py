"""From a recipe to its tensors: which tensors of which models make each tensor of the merged model.

Works on names alone. A tensor belongs to the layer that the first integer in its dotted name says
(``model.layers.3.mlp.up_proj.weight``); no list of architectures is needed.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from evomerge.errors import ConfigError
from evomerge.recipes.recipe import ModelInput, OutputSlice, Recipe, SliceInput

_LAYER = re.compile(r"(?:(?<=\.)|^)\d+(?=\.)")
_BEFORE_THE_LAYERS = re.compile(r"embed|wte|wpe", re.IGNORECASE)


@dataclass(frozen=True)
class PlannedInput:
    """One model's part in an output tensor."""

    model: str
    tensor: str


@dataclass(frozen=True)
class PlannedTensor:
    """One output tensor, its place in the recipe, and what it is made of.

    ``depth`` is the position in [0, 1] at which gradients are read, as in mergekit: index/(n-1) in a slice of
    n layers, 1 in a slice of one layer, 0 for every tensor outside the layers (embeddings, final norm, head).
    ``inputs`` are in the recipe's order; a base that is not among ``models`` comes last.
    """

    name: str
    layer: int | None
    depth: float
    slice_index: int
    inputs: tuple[PlannedInput, ...]
    base: str | None


def layer_of(tensor_name: str) -> int | None:
    """Return the index of the layer that a tensor belongs to, None for tensors outside the layers."""
    match = _LAYER.search(tensor_name)
    return int(match.group()) if match else None


def with_layer(tensor_name: str, layer: int) -> str:
    """Return the name of the same tensor in another layer."""
    return _LAYER.sub(str(layer), tensor_name, count=1)


def count_layers(tensor_names: Collection[str]) -> int:
    """Return the number of layers that the names speak of."""
    return 1 + max((layer for name in tensor_names if (layer := layer_of(name)) is not None), default=-1)


def plan(recipe: Recipe, tensor_names: Mapping[str, Collection[str]]) -> tuple[PlannedTensor, ...]:
    """Return every output tensor: those before the layers, the layers in order, those after.

    Args:
        tensor_names: model reference → names of its tensors, for every model in ``recipe.parents()``.

    Raises:
        ConfigError: models of different depth under ``models``, or a layer_range beyond a model's last layer.
    """
    slices = output_slices(recipe, {model: count_layers(names) for model, names in tensor_names.items()})
    first, last = slices[0], slices[-1]
    outside = [
        _outside(recipe, index, part, tensor_names, before=before)
        for index, part, before in ((0, first, True), (len(slices) - 1, last, False))
    ]
    planned = list(outside[0])
    offset = 0
    for index, part in enumerate(slices):
        planned += _slice(recipe, index, part, offset, tensor_names)
        offset += part.num_layers
    return tuple(planned + list(outside[1]))


def output_slices(recipe: Recipe, num_layers: Mapping[str, int]) -> tuple[OutputSlice, ...]:
    """Return the recipe's slices; ``models`` are one slice over all layers.

    A base that is not among the models is added to them, last.

    Args:
        num_layers: model reference → its number of layers.
    """
    if recipe.slices:
        for index, part in enumerate(recipe.slices):
            for source in part.sources:
                if source.layer_range[1] > num_layers[source.model]:
                    raise ConfigError(
                        f"slices[{index}]: layer_range {list(source.layer_range)} reaches beyond "
                        f"{source.model!r}, which has {num_layers[source.model]} layers "
                        "(the end of a range is not included)"
                    )
        return recipe.slices
    inputs = list(recipe.models or ())
    if recipe.base_model is not None and recipe.base_model not in [entry.model for entry in inputs]:
        inputs.append(ModelInput(model=recipe.base_model))
    depths = {entry.model: num_layers[entry.model] for entry in inputs}
    if len(set(depths.values())) > 1:
        listed = ", ".join(f"{model!r} has {depth}" for model, depth in depths.items())
        raise ConfigError(f"models must have equally many layers: {listed}; use slices to pick layers")
    sources = tuple(
        SliceInput.model_construct(model=entry.model, layer_range=(0, depths[entry.model]), parameters=entry.parameters)
        for entry in inputs
    )
    return (OutputSlice.model_construct(sources=sources),)


def _slice(
    recipe: Recipe, index: int, part: OutputSlice, offset: int, tensor_names: Mapping[str, Collection[str]]
) -> Iterator[PlannedTensor]:
    by_layer = {source.model: _by_layer(tensor_names[source.model]) for source in part.sources}
    count = part.num_layers
    for step in range(count):
        layers = {source.model: source.layer_range[0] + step for source in part.sources}
        names = {
            with_layer(name, offset + step)
            for model, layer in layers.items()
            for name in by_layer[model].get(layer, ())
        }
        for name in sorted(names):
            yield PlannedTensor(
                name=name,
                layer=offset + step,
                depth=step / (count - 1) if count > 1 else 1.0,
                slice_index=index,
                inputs=tuple(PlannedInput(model, with_layer(name, layer)) for model, layer in layers.items()),
                base=part.base_model or recipe.base_model,
            )


def _outside(
    recipe: Recipe,
    index: int,
    part: OutputSlice,
    tensor_names: Mapping[str, Collection[str]],
    *,
    before: bool,
) -> Iterator[PlannedTensor]:
    models = [source.model for source in part.sources]
    names = {
        name
        for model in models
        for name in tensor_names[model]
        if layer_of(name) is None and bool(_BEFORE_THE_LAYERS.search(name)) == before
    }
    for name in sorted(names):
        inputs = tuple(PlannedInput(model, name) for model in models)
        yield PlannedTensor(name, None, 0.0, index, inputs, part.base_model or recipe.base_model)


def _by_layer(names: Collection[str]) -> dict[int | None, list[str]]:
    grouped: dict[int | None, list[str]] = {}
    for name in names:
        grouped.setdefault(layer_of(name), []).append(name)
    return grouped
