"""Record what mergekit's own planner makes of recipes: each tensor, its inputs, depth and parameters.

Run with the Python of an environment that has mergekit (ours has not):

    cd tests/references
    PYTHON_WITH_MERGEKIT mergekit_recipes.py $PWD/recipes/*.yaml > recipe_parameters.json

The recipes may name the models m0 to m4 and base: all are Llamas of 6 layers with random weights.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import sys
import tempfile
from pathlib import Path

import yaml
from mergekit import merge, merge_methods, plan
from mergekit.architecture import get_architecture_info
from mergekit.config import MergeConfiguration
from mergekit.io.tasks import LoaderCache
from mergekit.options import MergeOptions
from transformers import LlamaConfig, LlamaForCausalLM

MODELS = ("m0", "m1", "m2", "m3", "m4", "base")
NUM_LAYERS = 6


def main(paths: list[str]) -> None:
    """Print one JSON object: versions, the tensor names, and the planned tensors of each recipe."""
    recipes = {Path(path).stem: Path(path).read_text() for path in paths}
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        os.chdir(folder)
        config = LlamaConfig(
            num_hidden_layers=NUM_LAYERS,
            hidden_size=8,
            intermediate_size=8,
            vocab_size=8,
            num_attention_heads=2,
        )
        model = LlamaForCausalLM(config)
        for name in MODELS:
            model.save_pretrained(name)
        result = {
            "versions": {name: importlib.metadata.version(name) for name in ("mergekit", "transformers")},
            "num_layers": NUM_LAYERS,
            "tensor_names": sorted(model.state_dict()),
            "defaults": {name: defaults(text) for name, text in sorted(recipes.items())},
            "recipes": {name: planned(text) for name, text in sorted(recipes.items())},
        }
    json.dump(result, sys.stdout, indent=None, separators=(",", ":"))
    sys.stdout.write("\n")


def defaults(text: str) -> dict:
    """Return the default of each parameter of a recipe's method; None if a recipe must say it."""
    spec = merge_methods.get(yaml.safe_load(text)["merge_method"]).spec
    parameters = [*spec.shared_parameters, *spec.input_parameters]
    return {p.name: None if p.required else p.default for p in parameters}


def planned(text: str) -> list[dict]:
    """Return the output tensors of one recipe, in mergekit's order."""
    config = MergeConfiguration.model_validate(yaml.safe_load(text))
    options = MergeOptions(quiet=True)
    architecture = get_architecture_info(config, options)
    LoaderCache().setup(options=options)
    tensors: list[dict] = []
    resolve = plan.resolve_parameters

    def recording(spec, *, tensor_name, inputs, sources, base_model=None, t=0):
        merged, of_inputs = resolve(
            spec, tensor_name=tensor_name, inputs=inputs, sources=sources, base_model=base_model, t=t
        )
        tensors.append(
            {
                "name": tensor_name,
                "depth": t,
                "base": None if base_model is None else str(base_model),
                "inputs": [[str(model), name] for model, name in inputs.items()],
                "parameters": merged,
                "of_inputs": {str(model): values for model, values in of_inputs.items()},
            }
        )
        return merged, of_inputs

    plan.resolve_parameters = recording
    try:
        out_config = merge._model_out_config(config, architecture, trust_remote_code=False)
        plan.MergePlanner(config, architecture, options=options, out_model_config=out_config)._plan()
    finally:
        plan.resolve_parameters = resolve
    return tensors


if __name__ == "__main__":
    main(sys.argv[1:])
