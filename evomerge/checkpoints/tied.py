"""Tensors that a model shares under several names, such as the embedding and the head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.skeleton import skeleton


def tied_tensors(checkpoint: Checkpoint) -> dict[str, str]:
    """Return name → the stored tensor that the model uses under that name too.

    Which tensors may be shared is known to the model's class in transformers, whether they are to its config. Files
    store one of them, not always the same one. A file that stores several counts as tied only if they are equal,
    which is how transformers loads it.
    """
    model = skeleton(checkpoint)
    if model is None or not model.tied:
        return {}
    stored = {model.name_of(name)[0]: name for name in checkpoint.tensors}
    groups: dict[str, list[str]] = {}
    for alias, source in model.tied.items():
        groups.setdefault(source, [source]).append(alias)
    tied: dict[str, str] = {}
    for names in groups.values():
        present = [stored[name] for name in names if name in stored]
        for name in names:
            under = stored.get(name, name)
            if under in checkpoint.untied:
                continue
            if present and under != present[0] and (under not in present or _equal(checkpoint, under, present[0])):
                tied[under] = present[0]
    return tied


def untied_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config with the flag, its own and that of configs nested in it, of a model that ties nothing."""
    nested = {name: value for name, value in config.items() if isinstance(value, Mapping) and "vocab_size" in value}
    return {**config, **{name: untied_config(value) for name, value in nested.items()}, "tie_word_embeddings": False}


def _equal(checkpoint: Checkpoint, first: str, second: str) -> bool:
    return torch.equal(checkpoint.tensor(first), checkpoint.tensor(second))
