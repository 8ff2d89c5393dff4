"""The streaming engine: a merged model, written to a folder one tensor at a time."""

from __future__ import annotations

import json
from collections import Counter
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
from evomerge.merging.parents import Parents, Step
from evomerge.merging.tensors import merge_dtypes, merge_tensors
from evomerge.recipes import Recipe, write_recipe

RECIPE = "recipe.yaml"
CHAT_TEMPLATE = "chat_template.jinja"
DEPTH_FIELDS = ("num_hidden_layers", "n_layer", "num_layers")
PER_LAYER = ("layer_", "mlp_", "no_rope_", "attention_types")  # beginnings of fields with one entry a layer


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
    steps = {step.name: step for step in parents.plan(recipe)}
    specs = [TensorSpec(step.name, step.shape, merge_dtypes(recipe, step)[1]) for step in steps.values()]
    with CheckpointWriter(Path(out), specs, max_shard_size) as writer:
        for name, tensor in merge_tensors(recipe, parents):
            if not _finite(tensor):
                raise MergeError(f"tensor {name}: the merge holds NaN or Inf; {_guilt(steps[name], parents)}")
            writer.write(name, tensor)
        _write_companions(recipe, parents, specs, writer.folder)
    return writer.out


def _finite(tensor: torch.Tensor) -> bool:
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    return all(map(torch.isfinite, torch.aminmax(tensor)))


def _guilt(step: Step, parents: Parents) -> str:
    guilty = [model for model, name in step.inputs.items() if not _finite(parents.tensor(model, name))]
    if not guilty:
        return "no parent does; the recipe's numbers overflow its dtype"
    return f"so does this tensor in {', '.join(guilty)}: use another checkpoint of that model"


def _write_companions(recipe: Recipe, parents: Parents, specs: list[TensorSpec], folder: Path) -> None:
    """Write config, tokenizer, generation config and the recipe beside the weights."""
    donor = parents[recipe.base_model or recipe.parents()[0]]
    config = output_config(recipe, parents, specs)
    (folder / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    source = recipe.tokenizer.source if recipe.tokenizer else recipe.tokenizer_source
    copy_tokenizer(parents.checkpoints.get(source or "", donor).folder, folder)
    if recipe.chat_template is not None:
        (folder / CHAT_TEMPLATE).write_text(recipe.chat_template, encoding="utf-8")
    copy_generation_config(donor.folder, folder)
    (folder / RECIPE).write_text(write_recipe(recipe), encoding="utf-8")


def output_config(recipe: Recipe, parents: Parents, specs: list[TensorSpec]) -> dict[str, Any]:
    """Return the merged model's config: the base's (or first model's), dtype, depth and ties put right."""
    donor = parents[recipe.base_model or recipe.parents()[0]]
    config = {name: value for name, value in donor.config.items() if name != "_name_or_path"}
    sizes: Counter[torch.dtype] = Counter()
    for spec in specs:
        if spec.dtype.is_floating_point:
            sizes[spec.dtype] += spec.num_bytes
    for dtype, _ in sizes.most_common(1):
        config["torch_dtype" if "torch_dtype" in config else "dtype"] = str(dtype).removeprefix("torch.")
    if parents.untied(recipe.parents()):
        config["tie_word_embeddings"] = False
    return config | _depth(recipe, parents, donor.config, donor.num_layers)


def _depth(recipe: Recipe, parents: Parents, config: dict[str, Any], layers: int) -> dict[str, Any]:
    """Return the config's fields that say how many layers there are or list something for each."""
    sources: dict[int, tuple[str, int]] = {}
    for step in parents.plan(recipe):
        model, tensor = next(iter(step.inputs.items()))
        if step.planned.layer is not None:
            sources.setdefault(step.planned.layer, (model, layer_of(tensor) or 0))
    if [layer for _, layer in sources.values()] == list(range(layers)):
        return {}
    changed: dict[str, Any] = {field: len(sources) for field in DEPTH_FIELDS if config.get(field) == layers}
    for field, value in config.items():
        if isinstance(value, list) and len(value) == layers and field.startswith(PER_LAYER):
            lists = [parents[model].config.get(field, value) for model, _ in sources.values()]
            changed[field] = [each[layer] for each, (_, layer) in zip(lists, sources.values(), strict=True)]
    return changed
