"""The streaming engine: a merged model, written to a folder one tensor at a time."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from evomerge import __version__
from evomerge.checkpoints import CheckpointWriter, TensorSpec, all_finite, copy_processors, layer_of, untied_config
from evomerge.errors import ConfigError, MergeError
from evomerge.merging.checks import check_recipe
from evomerge.merging.depths import DEPTH_FIELDS, NUMBERED, PER_LAYER, full_config, module_depths
from evomerge.merging.optional import donor_of
from evomerge.merging.parents import Parents
from evomerge.merging.statistics import Statistics
from evomerge.merging.tensors import merge_dtypes, merge_tensors
from evomerge.merging.tokenizer_files import write_tokenizer
from evomerge.recipes import Recipe, write_recipe

RECIPE = "recipe.yaml"
_OVERFLOW = "the recipe's numbers overflow its dtype"


def merge_to_folder(
    recipe: Recipe,
    out: Path | str,
    *,
    max_shard_size: str | int = "5GB",
    parents: Parents | None = None,
    companions: Mapping[str, str] | None = None,
    replace: bool = False,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Merge ``recipe`` into a model folder that transformers loads, and return the folder.

    Holds in memory one tensor of each parent. The folder appears complete, by one rename, or not at all. Tensors that
    are done outlive a kill, an interruption and a full disk in a hidden folder beside ``out``: merging the same recipe
    of the same parents into the same ``out`` again goes on from there.

    Args:
        recipe: what to merge.
        out: a folder that does not exist or is empty.
        max_shard_size: of each safetensors file, such as "5GB".
        parents: the recipe's parents where they are open already.
        companions: further files, name → text.
        replace: put the merged folder in the place of the one at ``out``, if there is one.
        report: told the bytes written and the bytes in all, after each tensor.

    Raises:
        ConfigError: the recipe does not fit its parents; lists every problem.
        CheckpointError: a parent cannot be found or read, or one of its tensors holds NaN or Inf.
        MergeError: a tensor cannot be merged, or overflows its dtype.
        ExportError: the folder cannot be written, is not empty, is being written, or the disk is too small.
    """
    parents = parents or Parents.open(recipe.parents())
    if problems := check_recipe(recipe, parents):
        raise ConfigError(problems)
    parents = parents.viewed(recipe)
    specs = [TensorSpec(step.name, step.shape, merge_dtypes(recipe, step)[1]) for step in parents.plan(recipe)]
    identity = _identity(recipe, parents)
    checked = parents.checked(recipe)
    checked.release()  # of what the checks have read
    with CheckpointWriter(Path(out), specs, max_shard_size, identity=identity, replace=replace) as writer:
        total = sum(spec.num_bytes for spec in specs)
        left = sum(spec.num_bytes for spec in specs if spec.name not in writer.done)
        for name, tensor in merge_tensors(recipe, checked, skip=writer.done):
            if not all_finite(tensor):
                raise MergeError(f"tensor {name}: the merge holds NaN or Inf, which no parent does; {_OVERFLOW}")
            writer.write(name, tensor)
            left -= tensor.nbytes
            report(total - left, total)
            del tensor  # it may be a view of a file that is to be unmapped
            checked.release()
            if recipe.statistics is not None:
                Statistics.open(recipe.statistics).release()
        _write_companions(recipe, parents, specs, writer.folder)
        for file, text in (companions or {}).items():
            (writer.folder / file).write_text(text, encoding="utf-8")
    return writer.out


def _identity(recipe: Recipe, parents: Parents) -> str:
    """Return 16 hexadecimal digits of all that decides the merged weights, apart from their names, shapes and dtypes.

    A file that was written to since counts as another, even if the places that fingerprints look at are the same.
    """
    checkpoints = {reference: parents[reference] for reference in recipe.parents()}
    files = {info.file for checkpoint in checkpoints.values() for info in checkpoint.tensors.values()}
    if recipe.statistics is not None:
        files |= {file for file in Path(recipe.statistics).glob("*") if file.is_file()}
    content = {
        "versions": [__version__, torch.__version__],
        "recipe": recipe.hash,
        "parents": {reference: checkpoint.fingerprint for reference, checkpoint in checkpoints.items()},
        "files": sorted([str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files if file.is_file()),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _write_companions(recipe: Recipe, parents: Parents, specs: list[TensorSpec], folder: Path) -> None:
    """Write config, tokenizer, generation config and the recipe beside the weights; of plain tensors as they are."""
    donor = parents[donor_of(recipe)]
    config = output_config(recipe, parents, specs)
    if not donor.is_plain:
        config |= write_tokenizer(recipe, parents.checkpoints, folder)
        copy_processors(donor.folder, folder)
    if config:
        text = json.dumps(config, indent=2, ensure_ascii=False)
        (folder / "config.json").write_text(text + "\n", encoding="utf-8")
    (folder / RECIPE).write_text(write_recipe(recipe), encoding="utf-8")


def output_config(recipe: Recipe, parents: Parents, specs: list[TensorSpec]) -> dict[str, Any]:
    """Return the merged model's config: the base's (or first model's), dtype, depth and ties put right.

    That of plain tensors is theirs as it is, and empty if they have none.
    """
    donor = parents[donor_of(recipe)]
    if donor.is_plain:
        return dict(donor.config)
    config = {name: value for name, value in donor.config.items() if name != "_name_or_path"}
    sizes: Counter[torch.dtype] = Counter()
    for spec in specs:
        if spec.dtype.is_floating_point:
            sizes[spec.dtype] += spec.num_bytes
    for dtype, _ in sizes.most_common(1):
        config["torch_dtype" if "torch_dtype" in config else "dtype"] = str(dtype).removeprefix("torch.")
    if parents.untied(recipe.parents()):
        config = untied_config(config)
    if recipe.modules:
        return config | module_depths(recipe, parents, config)
    return config | _depth(recipe, parents, config, donor.num_layers)


def _depth(recipe: Recipe, parents: Parents, config: Mapping[str, Any], layers: int) -> dict[str, Any]:
    """Return the config's fields that say how many layers there are or list something for each.

    They are in the config itself or, of models that nest it, in ``text_config``.
    """
    sources: dict[int, tuple[str, int]] = {}
    for step in parents.plan(recipe) if recipe.slices else ():
        model, tensor = next(iter(step.inputs.items()))
        if step.planned.layer is not None:
            sources.setdefault(step.planned.layer, (model, layer_of(tensor) or 0))
    if not sources or [layer for _, layer in sources.values()] == list(range(layers)):
        return {}
    models = {donor_of(recipe), *(model for model, _ in sources.values())}
    full = {model: full_config(parents[model]) for model in models}
    text = config.get("text_config")
    if isinstance(text, Mapping) and not any(field in config for field in DEPTH_FIELDS):
        parts = {model: each.get("text_config", {}) for model, each in full.items()}
        return {"text_config": {**text, **_new_depth(donor_of(recipe), parts, list(sources.values()), layers)}}
    return _new_depth(donor_of(recipe), full, list(sources.values()), layers)


def _new_depth(
    donor: str, configs: Mapping[str, Mapping[str, Any]], sources: list[tuple[str, int]], layers: int
) -> dict[str, Any]:
    changed: dict[str, Any] = {}
    for field, value in configs[donor].items():
        lists = [configs[model].get(field, value) for model, _ in sources]
        if field in DEPTH_FIELDS and value == layers:
            changed[field] = len(sources)
        elif field in NUMBERED and isinstance(value, list):
            pairs = zip(lists, sources, strict=True)
            changed[field] = [number for number, (each, (_, layer)) in enumerate(pairs) if layer in each]
        elif isinstance(value, list) and len(value) == layers and field.startswith(PER_LAYER):
            changed[field] = [each[layer] for each, (_, layer) in zip(lists, sources, strict=True)]
    return changed
