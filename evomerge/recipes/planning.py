"""From a recipe to its tensors: which tensors of which models make each tensor of the merged model.

Works on names alone, no list of architectures is needed. The first integer in a tensor's dotted name says its layer,
what is before the integer says its stack: ``model.layers.3.mlp.up_proj.weight`` is in layer 3 of the stack
``model.layers``. A decoder has one stack; an encoder-decoder, a vision-language model or CLIP has two; each is a
run of layers of its own. Later integers (experts, the blocks of a stage, T5's ``layer.1``) belong to the layer.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

from evomerge.errors import ConfigError
from evomerge.recipes.modules import plan_modules
from evomerge.recipes.recipe import ModelInput, OutputSlice, Recipe, SliceInput

_LAYER = re.compile(r"(?:(?<=\.)|^)\d+(?=\.)")
_BEFORE_THE_LAYERS = re.compile(
    r"embed(?!_out)|wte|wpe|(^|\.)shared\.|project_in|ln_pre|pre_lay", re.IGNORECASE
)  # embed_out is GPT-NeoX's head


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
    ``layer`` and ``depth`` count the layers of the tensor's own ``stack``, which is None outside the layers.
    ``inputs`` are in the recipe's order; a base that is not among ``models`` comes last.
    """

    name: str
    layer: int | None
    depth: float
    slice_index: int
    inputs: tuple[PlannedInput, ...]
    base: str | None
    stack: str | None = None


def layer_of(tensor_name: str) -> int | None:
    """Return the index of the layer that a tensor belongs to, None for tensors outside the layers."""
    place = _place(tensor_name)
    return place[1] if place else None


def stack_of(tensor_name: str) -> str | None:
    """Return the name of the stack that a tensor belongs to ("" if its name begins with the layer), None outside."""
    place = _place(tensor_name)
    return place[0] if place else None


@lru_cache(maxsize=1 << 17)  # a model of experts has tens of thousands of names, the same in every parent
def _place(tensor_name: str) -> tuple[str, int, bool] | None:
    """Return stack, layer, and whether the layer has parts with names."""
    match = _LAYER.search(tensor_name)
    if match is None:
        return None
    stack = tensor_name[: match.start()].removesuffix(".")
    return stack, int(match.group()), "." in tensor_name[match.end() + 1 :]


def with_layer(tensor_name: str, layer: int) -> str:
    """Return the name of the same tensor in another layer."""
    return tensor_name if layer_of(tensor_name) == layer else _LAYER.sub(str(layer), tensor_name, count=1)


def find_stacks(tensor_names: Iterable[str]) -> dict[str, int]:
    """Return the model's stacks, by name: how many layers each has.

    A layer is a module of several parts. Where there is such a stack, numbered single weights (the two matrices
    of a projector, ``merger.mlp.0.weight`` and ``merger.mlp.2.weight``) are no stack and lie outside the layers.
    """
    depths: dict[str, int] = {}
    layered: set[str] = set()
    for name in tensor_names:
        if place := _place(name):
            stack, layer, composite = place
            depths[stack] = max(depths.get(stack, 0), layer + 1)
            if composite:
                layered.add(stack)
    return {stack: depths[stack] for stack in sorted(depths) if stack in layered or not layered}


def count_layers(tensor_names: Collection[str]) -> int:
    """Return the number of layers that the names speak of, those of the deepest stack if there are several."""
    return max(find_stacks(tensor_names).values(), default=0)


def plan(recipe: Recipe, tensor_names: Mapping[str, Collection[str]]) -> tuple[PlannedTensor, ...]:
    """Return every output tensor: those before the layers, each stack's layers in order, those after.

    Args:
        tensor_names: model reference → names of its tensors, for every model in ``recipe.parents()``.

    Raises:
        ConfigError: models of different depth under ``models``, a layer_range beyond a model's last layer, or
            slices of models that have several stacks.
    """
    if recipe.modules:
        return plan_modules(recipe, tensor_names, plan)
    stacks = tuple(find_stacks({name for names in tensor_names.values() for name in names}))
    if recipe.slices and len(stacks) > 1:
        raise ConfigError(
            f"slices: these models have several stacks of layers ({', '.join(stacks)}), and a slice does not say of "
            "which; use models, which merges every layer of each stack"
        )
    parts = {stack: _slices_of(recipe, stack, tensor_names) for stack in stacks}
    slices = next(iter(parts.values()), None) or output_slices(recipe, dict.fromkeys(tensor_names, 0))
    outer, first, last = recipe, (0, slices[0]), (len(slices) - 1, slices[-1])
    if recipe.outer is not None:
        outer = recipe.outer
        first = last = (0, output_slices(outer, dict.fromkeys(tensor_names, 0))[0])
    before = _outside(outer, *first, tensor_names, stacks, before=True)
    after = _outside(outer, *last, tensor_names, stacks, before=False)
    inside = [tensor for stack in stacks for tensor in _stack(recipe, stack, parts[stack], tensor_names)]
    return (*before, *inside, *after)


def output_slices(recipe: Recipe, num_layers: Mapping[str, int], stack: str = "") -> tuple[OutputSlice, ...]:
    """Return the recipe's slices of one stack; ``models`` are one slice over all layers.

    A base that is not among the models is added to them, last.

    Args:
        num_layers: model reference → its number of layers in that stack.
        stack: what messages call it where there are several.
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
        where = f" in {stack}" if stack else ""
        raise ConfigError(f"models must have equally many layers{where}: {listed}; use slices to pick layers")
    sources = tuple(
        SliceInput.model_construct(model=entry.model, layer_range=(0, depths[entry.model]), parameters=entry.parameters)
        for entry in inputs
    )
    return (OutputSlice.model_construct(sources=sources),)


def _slices_of(recipe: Recipe, stack: str, tensor_names: Mapping[str, Collection[str]]) -> tuple[OutputSlice, ...]:
    counts = {
        model: 1 + max((layer_of(name) or 0 for name in names if stack_of(name) == stack), default=-1)
        for model, names in tensor_names.items()
    }
    return output_slices(recipe, counts, stack)


def _stack(
    recipe: Recipe, stack: str, slices: tuple[OutputSlice, ...], tensor_names: Mapping[str, Collection[str]]
) -> Iterator[PlannedTensor]:
    offset = 0
    for index, part in enumerate(slices):
        by_layer = {source.model: _by_layer(tensor_names[source.model], stack) for source in part.sources}
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
                    stack=stack,
                )
        offset += count


def _outside(
    recipe: Recipe,
    index: int,
    part: OutputSlice,
    tensor_names: Mapping[str, Collection[str]],
    stacks: Collection[str],
    *,
    before: bool,
) -> Iterator[PlannedTensor]:
    models = [source.model for source in part.sources]
    names = {
        name
        for model in models
        for name in tensor_names[model]
        if stack_of(name) not in stacks and bool(_BEFORE_THE_LAYERS.search(name)) == before
    }
    for name in sorted(names):
        inputs = tuple(PlannedInput(model, name) for model in models)
        yield PlannedTensor(name, None, 0.0, index, inputs, part.base_model or recipe.base_model)


def _by_layer(names: Collection[str], stack: str) -> dict[int, list[str]]:
    grouped: dict[int, list[str]] = {}
    for name in names:
        if stack_of(name) == stack:
            grouped.setdefault(layer_of(name) or 0, []).append(name)
    return grouped
