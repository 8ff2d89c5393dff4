"""Record what mergekit's own planner makes of recipes: each tensor, its inputs, depth and parameters.

Run with the Python of an environment that has mergekit (ours has not); imports nothing of ours:

    cd tests/references
    PYTHON_WITH_MERGEKIT mergekit_recipes.py [--all] $PWD/recipes/*.yaml > recipe_parameters.json

A recipe may name any models; all are made up, with as many layers as it asks for (6 at least). They are Llamas, or
what the file's name begins with: `t5_`, `gemma3_`. Several stages in a file become recipes FILE#NAME. Kept are the
tensors named in KEPT and those outside the layers, with `--all` every tensor. Written against mergekit 0.1.5.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import logging
import os
import sys
import tempfile
import warnings
from pathlib import Path

import torch
import yaml
from mergekit import merge, merge_methods, plan
from mergekit.architecture import get_architecture_info
from mergekit.architecture.json_definitions import JSON_ARCHITECTURES
from mergekit.common import ModelReference
from mergekit.config import MergeConfiguration
from mergekit.io.tasks import LoaderCache
from mergekit.merge_methods.base import ParameterScope
from mergekit.options import MergeOptions
from safetensors.torch import save_file
from transformers import Gemma3Config, LlamaConfig, T5Config

KEPT = ("q_proj", "up_proj", "input_layernorm", "SelfAttention.q", "wi_0", "fc1", "layer_norm1")
FEWEST_LAYERS = 6
TINY = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}


def main(arguments: list[str]) -> None:
    """Print one JSON object: versions, methods, modules, and each recipe's architecture, tensors and parameters."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    everything = "--all" in arguments
    paths = [Path(path).absolute() for path in arguments if path != "--all"]
    # An adapter would be merged into its model on disk; here only the model's names and shapes count.
    ModelReference.merged = lambda self, **_: ModelReference(model=self.model)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        os.chdir(folder)
        recipes = {}
        for path in sorted(paths):
            for name, document in stages(path):
                recipes[name] = planned(document, path.stem, Path(folder) / name.replace("#", "-"), everything)
        result = {
            "versions": {name: importlib.metadata.version(name) for name in ("mergekit", "transformers")},
            "methods": methods(),
            "modules": modules(),
            "recipes": recipes,
        }
    json.dump(result, sys.stdout, indent=None, separators=(",", ":"))
    sys.stdout.write("\n")


def stages(path: Path) -> list[tuple[str, dict]]:
    """Return the documents of a file by name."""
    documents = list(yaml.safe_load_all(path.read_text()))
    if len(documents) == 1:
        return [(path.stem, documents[0])]
    return [(f"{path.stem}#{document.pop('name', '')}", document) for document in documents]


def methods() -> dict[str, dict]:
    """Return method → parameter → whether it is of the whole merge or of each model, and its default or "required"."""
    found = {}
    for method in merge_methods.registered_methods():
        found[method.spec.name] = {
            p.name: [
                "merge" if p.scope == ParameterScope.SHARED else "model",
                "required" if p.required else p.default,
            ]
            for p in method.spec.parameters
        }
    return dict(sorted(found.items()))


def modules() -> dict[str, dict]:
    """Return architecture → module → names of its tensors, of one layer, where there are several modules."""
    found = {}
    for architecture in JSON_ARCHITECTURES:
        if len(architecture.modules) == 1:
            continue
        found[architecture.architectures[0]] = {}
        for name, module in architecture.modules.items():
            parts = module.architecture.definition
            weights = [*parts.pre_weights, *parts.layer_templates.weights, *parts.post_weights]
            prefix = f"{module.weight_prefix.rstrip('.')}." if module.weight_prefix else ""  # one lacks its dot
            names = [prefix + weight.name.replace("${layer_index}", "0") for weight in weights]
            found[architecture.architectures[0]][name] = sorted(names)
    return dict(sorted(found.items()))


def planned(document: dict, stem: str, folder: Path, everything: bool) -> dict:
    """Return the depth of the models, all their tensors' names, and the output tensors in mergekit's order."""
    folder.mkdir(parents=True)
    os.chdir(folder)
    layers = max([FEWEST_LAYERS, *ends(document)])
    config = MergeConfiguration.model_validate(document)
    options = MergeOptions(quiet=True)
    names = make_models(config, stem, layers, options)
    architecture = get_architecture_info(config, options)
    LoaderCache().loaders.clear()
    LoaderCache().setup(options=options)
    tensors: list[list] = []
    resolve = plan.resolve_parameters

    def recording(spec, *, tensor_name, inputs, sources, base_model=None, t=0):
        merged, of_inputs = resolve(
            spec, tensor_name=tensor_name, inputs=inputs, sources=sources, base_model=base_model, t=t
        )
        base = None if base_model is None else str(base_model)
        of_models = [[str(model), name, of_inputs[model]] for model, name in inputs.items()]
        tensors.append([tensor_name, t, base, of_models, merged])
        return merged, of_inputs

    plan.resolve_parameters = recording
    try:
        out_config = merge._model_out_config(config, architecture, trust_remote_code=False)
        plan.MergePlanner(config, architecture, options=options, out_model_config=out_config)._plan()
    finally:
        plan.resolve_parameters = resolve

    def kept(name: str) -> bool:
        return everything or not any(c.isdigit() for c in name) or any(part in name for part in KEPT)

    return {
        "method": document["merge_method"],
        "tensor_names": sorted(name for name in names if kept(name)),
        "tensors": [tensor for tensor in tensors if kept(tensor[0])],
    }


def ends(value) -> list[int]:
    """Return the end of every layer_range in a recipe."""
    if isinstance(value, dict):
        here = [int(value["layer_range"][1])] if "layer_range" in value else []
        return here + [end for inner in value.values() for end in ends(inner)]
    return [end for inner in value for end in ends(inner)] if isinstance(value, list) else []


def make_models(config: MergeConfiguration, stem: str, layers: int, options: MergeOptions) -> list[str]:
    """Write a config and a file with a number under every name for each model; return the names."""
    if stem.startswith("t5_"):
        made = T5Config(num_layers=layers, num_decoder_layers=layers - 2, architectures=["T5ForConditionalGeneration"])
    elif stem.startswith("gemma3_"):
        made = Gemma3Config(
            text_config={**TINY, "num_hidden_layers": layers},
            vision_config={**TINY, "num_hidden_layers": layers - 2},
            architectures=["Gemma3ForConditionalGeneration"],
        )
    else:
        made = LlamaConfig(**TINY, num_hidden_layers=layers, vocab_size=8, architectures=["LlamaForCausalLM"])
    for model in config.referenced_models():
        made.save_pretrained(model.model.path)
    names = [weight.name for weight in get_architecture_info(config, options).all_weights(config=made)]
    for model in config.referenced_models():
        save_file({name: torch.zeros(1) for name in names}, f"{model.model.path}/model.safetensors")
    return names


if __name__ == "__main__":
    main(sys.argv[1:])
