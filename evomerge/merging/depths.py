"""Where a model's config says how deep its modules are, for recipes that stack layers of one module."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from evomerge.checkpoints import Checkpoint
from evomerge.checkpoints.skeleton import load_config
from evomerge.errors import CheckpointError, Problem
from evomerge.merging.parents import Parents, Step
from evomerge.recipes import Module, Recipe, layer_of, stack_of

# The fields that mergekit's architectures name, and the part of the config that they are in.
FIELDS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "text_decoder": (("text_config", "num_hidden_layers"), ("", "num_hidden_layers")),
    "vision_tower": (("vision_config", "num_hidden_layers"), ("vision_config", "depth")),
    "vision_model": (("vision_config", "num_hidden_layers"),),
    "encoder": (("", "num_layers"), ("", "encoder_layers")),
    "decoder": (("", "num_decoder_layers"), ("", "decoder_layers")),
}
DEPTH_FIELDS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")  # of models of one stack
PER_LAYER = ("layer_", "mlp_", "no_rope_", "attention_types")  # beginnings of fields with one entry a layer

NUMBERED = ("mlp_only_layers",)  # fields that list numbers of layers


def full_config(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """Return a model's config with what its config.json leaves to transformers, such as lists of layer types."""
    try:
        found: dict[str, Any] = load_config(checkpoint.folder, checkpoint.name, checkpoint.config).to_dict()
    except CheckpointError:  # a config of the model's own code
        return checkpoint.config
    return found


def depth_problems(recipe: Recipe, parents: Parents) -> list[Problem]:
    """Return the modules whose new depth cannot be written into the config."""
    config = parents[recipe.base_model or recipe.parents()[0]].config
    return [
        Problem(
            f"the module {name!r} has {before} layers, the recipe gives it {len(sources)}, and the config does not say "
            "where that is to be written",
            f"modules.{name}",
            f"take {before} layers in all",
        )
        for name, before, sources in _changed(recipe, parents)
        if _field(config, name, before) is None
    ]


def module_depths(recipe: Recipe, parents: Parents, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config's fields (whole parts of it where they are nested) that modules of another depth change."""
    changed: dict[str, Any] = {}
    for name, before, sources in _changed(recipe, parents):
        if (found := _field(config, name, before)) is None:
            continue
        part, field = found
        values = dict(_part(config, part))
        values[field] = len(sources)
        for other, value in _part(config, part).items():
            if isinstance(value, list) and len(value) == before and other.startswith(PER_LAYER):
                values[other] = [_part(parents[m].config, part).get(other, value)[layer] for m, layer in sources]
        changed |= {part: values} if part else values
    return changed


def _changed(recipe: Recipe, parents: Parents) -> Iterator[tuple[str, int, list[tuple[str, int]]]]:
    """Yield the modules with another order or number of layers: name, former depth, where each layer comes from."""
    donor = parents[recipe.base_model or recipe.parents()[0]]
    first = 0
    for name, module in (recipe.modules or {}).items():
        last = first + len(module.slices or (module,))
        layers = _layers(module, [s for s in parents.plan(recipe) if first <= s.planned.slice_index < last])
        first = last
        if layers:
            stack, sources = layers
            before = 1 + max((layer_of(n) or 0 for n in donor.tensors if stack_of(n) == stack), default=-1)
            if [layer for _, layer in sources] != list(range(before)):
                yield name, before, sources


def _layers(module: Module, steps: Sequence[Step]) -> tuple[str, list[tuple[str, int]]] | None:
    """Return the stack of a module with slices, and (model, layer) of each of its layers' first source."""
    sources: dict[int, tuple[str, int]] = {}
    stack = None
    for step in steps if module.slices else ():
        if step.planned.layer is not None:
            model, tensor = next(iter(step.inputs.items()))
            stack = step.planned.stack
            sources.setdefault(step.planned.layer, (model, layer_of(tensor) or 0))
    return None if stack is None else (stack, [sources[layer] for layer in sorted(sources)])


def _field(config: Mapping[str, Any], module: str, layers: int) -> tuple[str, str] | None:
    places = FIELDS.get(module, ())
    return next(((part, field) for part, field in places if _part(config, part).get(field) == layers), None)


def _part(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = config.get(name, {}) if name else config
    return part if isinstance(part, Mapping) else {}
