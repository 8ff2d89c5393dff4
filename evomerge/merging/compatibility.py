"""Do these models fit together? Each function returns the problems it finds, in words, with a way out."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from evomerge.checkpoints import Checkpoint, compare_tokenizers
from evomerge.errors import Problem
from evomerge.recipes import layer_of

# Fields that change what the same weights compute, while shapes stay equal.
FIELDS = (
    *("model_type", "num_attention_heads", "n_head", "n_heads", "num_heads", "num_key_value_heads", "head_dim"),
    *("encoder_attention_heads", "decoder_attention_heads", "hidden_act", "activation_function", "num_experts_per_tok"),
)
Config = Mapping[str, Any]
_VOCABULARY = ("embed", "wte", "lm_head")
_NO_HEAD = re.compile(r"embed|position|norm|patch", re.IGNORECASE)
_SHOWN = 3


def config_problems(checkpoints: Sequence[Checkpoint]) -> list[Problem]:
    """Return where configs differ in what the same weights compute: architecture, heads, rotations."""
    found = [problem for checkpoint in checkpoints for problem in _quantised(checkpoint)]
    first, *others = checkpoints
    for other in others:
        for part, ours, theirs in _parts(first.config, other.config):
            for field in FIELDS:
                if ours.get(field) is not None and theirs.get(field) is not None and ours[field] != theirs[field]:
                    what = f"{part}{field} is {ours[field]!r} in {first.name}, {theirs[field]!r} in {other.name}"
                    found.append(Problem(what, other.name, "merge models of one architecture and base"))
            if rope(ours) != rope(theirs):
                where = f" of {part.rstrip('.')}" if part else ""
                shown = f"{_show(ours)} in {first.name}, {_show(theirs)} in {other.name}"
                hint = "weights learnt for one rotation do not fit another; use models of one base"
                found.append(Problem(f"rotary embeddings{where} differ: {shown}", other.name, hint))
    return found


def _parts(
    ours: Mapping[str, Any], theirs: Mapping[str, Any]
) -> Iterator[tuple[str, Mapping[str, Any], Mapping[str, Any]]]:
    """Yield the two configs, and those of the model's parts that are nested in both (``text_config``)."""
    yield "", ours, theirs
    for name, value in ours.items():
        if name.endswith("_config") and isinstance(value, Mapping) and isinstance(theirs.get(name), Mapping):
            yield f"{name}.", value, theirs[name]


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
    """Return where vocabularies differ, by token; rows without tokens may differ in number."""
    if len(checkpoints) < 2:
        return []
    comparison = compare_tokenizers(checkpoints)
    if comparison.kind != "different":
        return []
    hint = "say which vocabulary the merged model has: tokenizer_source: base, union, or one of the models"
    listed = "".join(f"\n    - {detail}" for detail in comparison.details)
    return [Problem(f"the models have different vocabularies:{listed}", "tokenizer_source", hint)]


def shape_problems(name: str, shapes: Mapping[str, tuple[int, ...]]) -> list[Problem]:
    """Return one problem for each model whose tensor has another shape than the first model's."""
    (first, expected), *others = shapes.items()
    hint = "every parent must have the base's shapes; was this model fine-tuned from the same base?"
    if layer_of(name) is None and not _NO_HEAD.search(name):
        hint = (
            f"a head for other labels? Models with the weight 0 there take no part in it: weight: "
            f"[{{filter: {name.rpartition('.')[0] or name}, value: 0}}, {{value: 0.5}}]"
        )
    if any(word in name for word in _VOCABULARY):
        hint = "say which vocabulary the merged model has: tokenizer_source: base, union, or one of the models"
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


def _show(config: Mapping[str, Any]) -> str:
    return json.dumps(rope(config), sort_keys=True)


def _times(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "a single number"
