"""Tensors that a model shares under two names, such as the embedding and the head."""

from __future__ import annotations

from typing import Any

import torch

from evomerge.checkpoints.checkpoint import Checkpoint


def tied_tensors(checkpoint: Checkpoint) -> dict[str, str]:
    """Return name → the stored tensor that the model uses under that name too.

    Which tensors may be shared is known to the model's class in transformers, whether they are to its config.
    A file that stores both names counts as tied only if they are equal, which is how transformers loads it.
    """
    pairs = _pairs_of_class(checkpoint)
    stored = checkpoint.tensors
    tied: dict[str, str] = {}
    for alias, source in pairs.items():
        names = (source, source.partition(".")[2])  # old files lack the model's prefix
        found = next((name for name in names if name in stored), None)
        if found is None or (alias in stored and not _equal(checkpoint, alias, found)):
            continue
        tied[alias] = found
    return tied


def _pairs_of_class(checkpoint: Checkpoint) -> dict[str, str]:
    import transformers

    names = checkpoint.config.get("architectures") or [""]
    model_class: Any = getattr(transformers, names[0], None)
    keys = getattr(model_class, "_tied_weights_keys", None)
    if not isinstance(keys, dict) or not _config_ties(checkpoint, model_class):
        return {}
    return {alias: source for alias, source in keys.items() if isinstance(source, str)}


def _config_ties(checkpoint: Checkpoint, model_class: Any) -> bool:
    """Whether the config ties, with the default of its class where the file does not say."""
    if "tie_word_embeddings" in checkpoint.config:
        return bool(checkpoint.config["tie_word_embeddings"])
    config_class = getattr(model_class, "config_class", None)
    return bool(getattr(config_class() if config_class else None, "tie_word_embeddings", False))


def _equal(checkpoint: Checkpoint, first: str, second: str) -> bool:
    return torch.equal(checkpoint.tensor(first), checkpoint.tensor(second))
