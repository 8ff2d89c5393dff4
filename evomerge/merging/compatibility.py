"""Do these models fit together? Each function returns the problems it finds, in words, with a way out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from evomerge.checkpoints import Checkpoint, compare_tokenizers
from evomerge.errors import Problem

# Fields that change what the same weights compute, while shapes stay equal.
FIELDS = ("model_type", "num_attention_heads", "n_head", "num_key_value_heads", "head_dim", "hidden_act")
_VOCABULARY = ("embed", "wte", "lm_head")
_SHOWN = 3


def config_problems(checkpoints: Sequence[Checkpoint]) -> list[Problem]:
    """Return where configs differ in what the same weights compute: architecture, heads, rotations."""
    found = [problem for checkpoint in checkpoints for problem in _quantised(checkpoint)]
    first, *others = checkpoints
    for other in others:
        for field in FIELDS:
            ours, theirs = first.config.get(field), other.config.get(field)
            if ours is not None and theirs is not None and ours != theirs:
                what = f"{field} is {ours!r} in {first.name}, {theirs!r} in {other.name}"
                found.append(Problem(what, other.name, "merge models of one architecture and base"))
        if rope(first.config) != rope(other.config):
            what = f"rotary embeddings differ: {_show(first)} in {first.name}, {_show(other)} in {other.name}"
            hint = "weights learnt for one rotation do not fit another; use models of one base"
            found.append(Problem(what, other.name, hint))
    return found


def rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config's rotary parameters, whether written as ``rope_theta`` or ``rope_parameters``."""
    parameters = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    if "type" in parameters:
        parameters["rope_type"] = parameters.pop("type")
    if "rope_theta" in config:
        parameters.setdefault("rope_theta", config["rope_theta"])
    if not parameters:
        return {}
    return {"rope_type": "default", "rope_theta": 10000.0, **parameters}


def tokenizer_problems(checkpoints: Sequence[Checkpoint]) -> list[Problem]:
    """Return where vocabularies differ, by token and by the number of embedding rows."""
    if len(checkpoints) < 2:
        return []
    comparison = compare_tokenizers(checkpoints)
    if comparison.kind == "identical":
        return []
    if comparison.kind == "padding":
        hint = "the tokens agree, only padding rows differ; resize the embeddings to one size and save again"
    else:
        hint = "only models with one vocabulary can be merged so far; choose parents that share their tokenizer"
    return [Problem(detail, "tokenizer", hint) for detail in comparison.details]


def shape_problems(name: str, shapes: Mapping[str, tuple[int, ...]]) -> list[Problem]:
    """Return one problem for each model whose tensor has another shape than the first model's."""
    (first, expected), *others = shapes.items()
    hint = "every parent must have the base's shapes; was this model fine-tuned from the same base?"
    if any(word in name for word in _VOCABULARY):
        hint = "vocabularies must have one size so far; choose parents that share their tokenizer"
    return [
        Problem(f"tensor {name} is {_times(expected)} in {first}, {_times(shape)} in {other}", other, hint)
        for other, shape in others
        if shape != expected
    ]


def missing_tensors(first: str, names: Sequence[str], other: str, other_names: Sequence[str]) -> list[Problem]:
    """Return problems for tensors that one of two models lacks."""
    found: list[Problem] = []
    for owner, lacking, missing in (
        (first, other, sorted(set(names) - set(other_names))),
        (other, first, sorted(set(other_names) - set(names))),
    ):
        if missing:
            listed = ", ".join(missing[:_SHOWN]) + (", ..." if len(missing) > _SHOWN else "")
            what = f"{lacking} lacks {len(missing)} tensors that {owner} has: {listed}"
            found.append(Problem(what, lacking, "merge models of one architecture, saved by the same library"))
    return found


def _quantised(checkpoint: Checkpoint) -> list[Problem]:
    stored_in_bits = sorted(name for name, info in checkpoint.tensors.items() if "float8" in str(info.dtype))
    if "quantization_config" not in checkpoint.config and not stored_in_bits:
        return []
    what = "its weights are quantised, and codes cannot be averaged"
    return [Problem(what, checkpoint.name, "use the unquantised model")]


def _show(checkpoint: Checkpoint) -> str:
    return json.dumps(rope(checkpoint.config), sort_keys=True)


def _times(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "a single number"
