"""Which tensors have a row for each token: embeddings, heads and their biases, of any architecture.

A model is built twice on the meta device, where weights take no memory, with vocabularies of two sizes. Whatever
changes its shape belongs to the vocabulary. So no list of architectures is needed, and a matrix that happens to have
as many rows as there are tokens is not taken for an embedding.
"""

from __future__ import annotations

import copy
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.skeleton import load_config, model_class, quiet, skeleton
from evomerge.checkpoints.tokenizers import vocab_size
from evomerge.errors import CheckpointError
from evomerge.recipes import layer_of

_MORE = 8  # tokens of the second model
_MANY = 1 << 20  # more tokens than any vocabulary has: ids written in a config stay below


def vocabulary_axes(checkpoint: Checkpoint) -> dict[str, int]:
    """Return name → the axis that counts tokens, for every stored tensor that has one.

    Where transformers does not know the model's class, tensors outside the layers whose first axis is as long as
    the config's ``vocab_size`` are taken.

    Raises:
        CheckpointError: the class is unknown, and the sizes alone do not tell what belongs to the vocabulary.
    """
    known = skeleton(checkpoint)
    if known is None:
        return _axes_by_size(checkpoint)
    axes = _axes_of_class(json.dumps(checkpoint.config, sort_keys=True), checkpoint.folder)
    named = {stored: known.name_of(stored)[0] for stored in checkpoint.tensors}
    return {stored: axes[name] for stored, name in named.items() if name in axes}


@lru_cache(maxsize=64)
def _axes_of_class(config: str, folder: Path) -> dict[str, int]:
    """Return the axes by the names that the model's class has."""
    fields = json.loads(config)
    built_by = model_class(fields, str(folder))
    settings = load_config(folder, str(folder), fields)
    parts = _parts_with_vocabulary(settings)
    if not parts:
        return {}
    shapes = []
    for tokens in (_MANY, _MANY + _MORE):
        for part in parts:
            part.vocab_size = tokens
        shapes.append(_shapes(built_by, settings))
    first, second = shapes
    return {
        name: next(axis for axis, (size, larger) in enumerate(zip(shape, second[name], strict=True)) if size != larger)
        for name, shape in first.items()
        if shape != second[name]
    }


def _shapes(built_by: Any, settings: Any) -> dict[str, tuple[int, ...]]:
    settings = copy.deepcopy(settings)  # some classes write into the config that they are given
    with quiet(), torch.device("meta"):
        model = built_by.from_config(settings) if hasattr(built_by, "from_config") else built_by(settings)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _parts_with_vocabulary(config: Any) -> list[Any]:
    """Return the configs in which the vocabulary's size is written: this one, or its language model's."""
    text = config.get_text_config()
    return [part for part in ((config,) if text is config else (config, text)) if "vocab_size" in part.__dict__]


def _axes_by_size(checkpoint: Checkpoint) -> dict[str, int]:
    size = vocab_size(checkpoint)
    shapes = {name: info.shape for name, info in checkpoint.tensors.items() if layer_of(name) is None}
    ambiguous = any(shape.count(size) > 1 for shape in shapes.values()) or checkpoint.config.get("hidden_size") == size
    if size is None or ambiguous:
        which = "its config has no vocab_size" if size is None else f"its hidden size equals its vocab_size, {size}"
        raise CheckpointError(
            f"{checkpoint.name}: transformers does not know its class, and {which}: which tensors have a row for each "
            "token cannot be told; choose parents that share their tokenizer"
        )
    return {name: 0 for name, shape in shapes.items() if shape and shape[0] == size}
