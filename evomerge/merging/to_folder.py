"""The streaming engine: a merged model, written to a folder one tensor at a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from evomerge.checkpoints import (
    CheckpointWriter,
    TensorSpec,
    copy_generation_config,
    copy_tokenizer,
    layer_of,
)
from evomerge.errors import ConfigError, MergeError
from evomerge.merging.checks import check_recipe
from evomerge.merging.method import METHODS
from evomerge.merging.parents import Parents
from evomerge.merging.preparations import Preparations
from evomerge.merging.tensors import merge_dtypes, merge_tensor, planned_tensors
from evomerge.recipes import PlannedTensor, Recipe, write_recipe

RECIPE = "recipe.yaml"
CHAT_TEMPLATE = "chat_template.jinja"
_DEPTH_FIELDS = ("num_hidden_layers", "n_layer", "num_layers")


def merge_to_folder(
    recipe: Recipe, out: Path | str, *, max_shard_size: str | int = "5GB", parents: Parents | None = None
) -> Path:
    """Merge ``recipe`` into a model folder that transformers loads, and return the folder.

    Holds in memory one tensor of each parent. The folder appears complete, by one rename, or not at all.

    Args:
        recipe: what to merge.
        out: a folder that does not exist or is empty.
        max_shard_size: of each safetensors file, such as "5GB".
        parents: the recipe's parents where they are open already.

    Raises:
        ConfigError: the recipe does not fit its parents; lists every problem.
        CheckpointError: a parent cannot be found or read.
        MergeError: a tensor cannot be merged, or a merged tensor holds NaN or Inf.
        ExportError: the folder cannot be written, is not empty, or the disk is too small.
    """
    parents = parents or Parents.open(recipe.parents())
    if problems := check_recipe(recipe, parents):
        raise ConfigError(problems)
    planned = planned_tensors(recipe, parents)
    specs = [_spec(recipe, tensor, parents) for tensor in planned]
    method = METHODS[recipe.merge_method]
    with CheckpointWriter(Path(out), specs, max_shard_size) as writer:
        for tensor in planned:
            merged = merge_tensor(recipe, method, tensor, parents, Preparations(0))
            _check_finite(tensor, merged, parents)
            writer.write(tensor.name, merged)
        _write_companions(recipe, parents, planned, specs, writer.folder)
    return writer.out


def _spec(recipe: Recipe, planned: PlannedTensor, parents: Parents) -> TensorSpec:
    infos = (parents.info(entry.model, entry.tensor) for entry in planned.inputs)
    shape = next(info.shape for info in infos if info is not None)
    return TensorSpec(planned.name, shape, merge_dtypes(recipe, planned, parents)[1])


def _check_finite(planned: PlannedTensor, merged: torch.Tensor, parents: Parents) -> None:
    if not merged.is_floating_point() or not merged.numel() or all(map(torch.isfinite, torch.aminmax(merged))):
        return
    guilty = [
        entry.model
        for entry in planned.inputs
        if not all(map(torch.isfinite, torch.aminmax(parents.tensor(entry.model, entry.tensor))))
    ]
    reason = f"it is so in {', '.join(guilty)}" if guilty else "no parent is; the recipe's numbers overflow its dtype"
    raise MergeError(f"tensor {planned.name}: the merge holds NaN or Inf; {reason}")


def _write_companions(
    recipe: Recipe, parents: Parents, planned: tuple[PlannedTensor, ...], specs: list[TensorSpec], folder: Path
) -> None:
    """Write config, tokenizer, generation config and the recipe beside the weights."""
    donor = parents[recipe.base_model or recipe.parents()[0]]
    config = output_config(recipe, parents, planned, specs)
    (folder / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    source = recipe.tokenizer.source if recipe.tokenizer else recipe.tokenizer_source
    named = source in parents.checkpoints and source is not None
    copy_tokenizer(parents[source].folder if named else donor.folder, folder)
    if recipe.chat_template is not None:
        (folder / CHAT_TEMPLATE).write_text(recipe.chat_template, encoding="utf-8")
    copy_generation_config(donor.folder, folder)
    (folder / RECIPE).write_text(write_recipe(recipe), encoding="utf-8")


def output_config(
    recipe: Recipe, parents: Parents, planned: tuple[PlannedTensor, ...], specs: list[TensorSpec]
) -> dict[str, Any]:
    """Return the merged model's config: the base's (or first model's), with its dtype, depth and ties put right."""
    donor = parents[recipe.base_model or recipe.parents()[0]]
    config = {name: value for name, value in donor.config.items() if name != "_name_or_path"}
    floating = {spec.dtype: 0 for spec in specs if spec.dtype.is_floating_point}
    for spec in specs:
        if spec.dtype in floating:
            floating[spec.dtype] += spec.num_bytes
    if floating:
        usual = max(floating, key=lambda dtype: floating[dtype])
        config["torch_dtype" if "torch_dtype" in config else "dtype"] = str(usual).removeprefix("torch.")
    if parents.untied(recipe.parents()):
        config["tie_word_embeddings"] = False
    return config | _depth(parents, planned, donor.config, donor.num_layers)


def _depth(
    parents: Parents, planned: tuple[PlannedTensor, ...], config: dict[str, Any], donor_layers: int
) -> dict[str, Any]:
    """Return the config's fields that say how many layers there are, and those that list something for each."""
    sources: dict[int, tuple[str, int]] = {}
    for tensor in planned:
        layer = layer_of(tensor.inputs[0].tensor)
        if tensor.layer is not None and layer is not None:
            sources.setdefault(tensor.layer, (tensor.inputs[0].model, layer))
    if list(sources.values()) == [(sources[0][0], layer) for layer in range(donor_layers)] if sources else True:
        return {}
    changed: dict[str, Any] = {f: len(sources) for f in _DEPTH_FIELDS if config.get(f) == donor_layers}
    for field, value in config.items():
        if isinstance(value, list) and len(value) == donor_layers and field.startswith(("layer_", "no_rope", "mlp_")):
            per_layer = [parents[model].config.get(field, value) for model, _ in sources.values()]
            changed[field] = [entries[layer] for entries, (_, layer) in zip(per_layer, sources.values(), strict=True)]
    return changed
