"""Merge recipes with mergekit, for comparison. Runs in mergekit's environment, not in ours; imports nothing
of ours.

    MERGEKIT_PYTHON tests/references/mergekit_merge.py JOBS.json

JOBS.json is a list of {"recipe": YAML text, "out": folder, "seed": number, "in_memory": bool}. What is merged in
memory needs no definition of the architecture, and its recipe has the same numbers for all tensors. Prints one JSON
object: mergekit's and torch's versions. Written against mergekit 0.1.5.
"""

import importlib.metadata
import json
import logging
import sys
import warnings
from pathlib import Path
from typing import Any


def main() -> None:
    """Carry out the jobs of the file named on the command line."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    import torch
    import yaml
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    torch.set_num_threads(1)
    for job in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        recipe = yaml.safe_load(job["recipe"])
        options = MergeOptions(quiet=True, copy_tokenizer=False, write_model_card=False, random_seed=job.get("seed", 0))
        try:
            if job.get("in_memory"):
                merge_in_memory(recipe, Path(job["out"]))
            else:
                run_merge(MergeConfiguration.model_validate(recipe), job["out"], options=options)
        except Exception as error:  # it writes the weights before the config, which it cannot always write
            print(f"{job['out']}: {error!r}", file=sys.stderr)
    print(json.dumps({"mergekit": importlib.metadata.version("mergekit"), "torch": torch.__version__}))


def merge_in_memory(recipe: dict[str, Any], out: Path) -> None:
    """Merge all tensors of the recipe's models, with its numbers."""
    import torch
    from mergekit import merge_methods
    from mergekit.merge_methods import ParameterScope, merge_state_dicts
    from safetensors.torch import load_file, save_file

    spec = merge_methods.get(recipe["merge_method"]).spec
    base, shared = recipe.get("base_model"), recipe.get("parameters", {})
    said = {entry["model"]: entry.get("parameters", {}) for entry in recipe["models"]}
    said |= {base: said.get(base, {})} if base else {}
    parameters = {p.name: shared[p.name] for p in spec.shared_parameters if p.name in shared}
    for p in spec.input_parameters:
        models = [model for model in said if p.scope == ParameterScope.INPUT or model != base]
        parameters[p.name] = {model: said[model].get(p.name, shared.get(p.name, p.default)) for model in models}
    merged = merge_state_dicts(
        {model: load_file(Path(model) / "model.safetensors") for model in said},
        recipe["merge_method"],
        base=base,
        parameters=parameters,
        dtype=getattr(torch, recipe.get("dtype", ""), None),
        out_dtype=getattr(torch, recipe.get("out_dtype", ""), None),
    )
    out.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in merged.items()}, out / "model.safetensors")


if __name__ == "__main__":
    main()
