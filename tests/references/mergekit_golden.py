"""Make the stored results that tests compare with: tiny Llamas and mergekit's merges of them.

Run with the Python of an environment that has mergekit (ours has not); imports nothing of ours:

    PYTHON_WITH_MERGEKIT tests/references/mergekit_golden.py tests/golden/mergekit
"""

import importlib.metadata
import json
import shutil
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

LAYERS, HIDDEN = 3, 8
MIX = [{"filter": "self_attn", "value": [0.2, 0.9]}, {"filter": "lm_head", "value": 0.8}, {"value": 0.4}]
SPAN = {"layer_range": [0, LAYERS]}


def weighted(**more):
    """Return three models with different kinds of weights."""
    weights = (0.7, [0.1, 0.5, 1.0], MIX)
    return [{"model": n, "parameters": {"weight": w, **more}} for n, w in zip("abc", weights, strict=True)]


def plain(names):
    """Return models without parameters."""
    return [{"model": name} for name in names]


def slices(scale):
    """Return two stacked slices, one of them scaled."""
    first = {"model": "a", "layer_range": [0, 2], "parameters": {"scale": scale}}
    return [{"sources": [first]}, {"sources": [{"model": "b", "layer_range": [1, 3]}]}]


ON_BASE = {"base_model": "base"}
CASES = {
    "linear": {"merge_method": "linear", "models": weighted()},
    "linear-sum": {"merge_method": "linear", "models": weighted(), "parameters": {"normalize": False}},
    "linear-with-base": {
        "merge_method": "linear",
        "models": weighted(),
        "parameters": {"weight": 0.3},
        **ON_BASE,
    },
    "linear-bfloat16": {"merge_method": "linear", "models": weighted(), "dtype": "bfloat16"},
    "slerp": {
        "merge_method": "slerp",
        "models": [{"model": "a"}, {"model": "base"}],
        "parameters": {"t": MIX},
        **ON_BASE,
    },
    "slerp-slices": {
        "merge_method": "slerp",
        "slices": [{"sources": [{"model": "base", **SPAN}, {"model": "b", **SPAN}]}],
        "parameters": {"t": [0, 0.5, 0.3, 0.7, 1]},
        **ON_BASE,
    },
    "task_arithmetic": {
        "merge_method": "task_arithmetic",
        "models": weighted(),
        "parameters": {"lambda": 0.8},
        **ON_BASE,
    },
    "task_arithmetic-float16": {
        "merge_method": "task_arithmetic",
        "models": [{"model": "base"}, *weighted()],
        "parameters": {"normalize": True},
        "dtype": "float32",
        "out_dtype": "float16",
        **ON_BASE,
    },
    "ties": {"merge_method": "ties", "models": weighted(density=[1, 0.7, 0.1]), **ON_BASE},
    "ties-rescaled": {
        "merge_method": "ties",
        "models": weighted(),
        "parameters": {"density": MIX, "rescale": True, "normalize": False, "int8_mask": True},
        **ON_BASE,
    },
    "breadcrumbs": {
        "merge_method": "breadcrumbs",
        "models": weighted(density=[0.2, 0.9], gamma=[0.3, 0.02]),
        "parameters": {"lambda": 1.2},
        **ON_BASE,
    },
    "breadcrumbs_ties": {
        "merge_method": "breadcrumbs_ties",
        "models": weighted(density=0.6),
        "parameters": {"gamma": 0.2, "rescale": True, "normalize": True},
        **ON_BASE,
    },
    "nuslerp": {"merge_method": "nuslerp", "models": weighted()[1:]},
    "nuslerp-rows": {
        "merge_method": "nuslerp",
        "models": [{"model": "base"}, *weighted()[:2]],
        "parameters": {"nuslerp_flatten": False},
        **ON_BASE,
    },
    "nuslerp-columns": {
        "merge_method": "nuslerp",
        "models": weighted()[:2],
        "parameters": {"nuslerp_flatten": False, "nuslerp_row_wise": True},
    },
    "multislerp": {"merge_method": "multislerp", "models": weighted()},
    "multislerp-on-base": {
        "merge_method": "multislerp",
        "models": weighted(),
        "parameters": {"normalize_weights": False},
        **ON_BASE,
    },
    "karcher": {"merge_method": "karcher", "models": plain("abc"), "parameters": {"max_iter": 4}, **ON_BASE},
    "sce": {"merge_method": "sce", "models": plain("abc"), "parameters": {"int8_mask": True}, **ON_BASE},
    "sce-selected": {"merge_method": "sce", "models": plain("abc"), "parameters": {"select_topk": MIX}, **ON_BASE},
    "model_stock": {"merge_method": "model_stock", "models": plain("abc"), **ON_BASE},
    "model_stock-rows": {
        "merge_method": "model_stock",
        "models": plain("ab"),
        "parameters": {"filter_wise": True},
        **ON_BASE,
    },
    "arcee_fusion": {"merge_method": "arcee_fusion", "models": plain("a"), **ON_BASE},
    "arcee_fusion-bfloat16": {"merge_method": "arcee_fusion", "models": plain("b"), "dtype": "bfloat16", **ON_BASE},
    "nearswap": {"merge_method": "nearswap", "models": plain("c"), "parameters": {"t": [0.001, 0.03]}, **ON_BASE},
    "ram": {"merge_method": "ram", "models": plain("abc"), "parameters": {"epsilon": 0.02}, **ON_BASE},
    "ramplus_tl": {
        "merge_method": "ramplus_tl",
        "models": plain("abc"),
        "parameters": {"r": 0.7, "alpha": [0.1, 2.0], "epsilon": 0.03},
        **ON_BASE,
    },
    "passthrough": {
        "merge_method": "passthrough",
        "slices": slices([{"filter": "o_proj", "value": 0.5}, {"value": 1}]),
    },
}


def main(out: Path) -> None:
    """Write the parents and `results.safetensors`, whose metadata has the recipes and the versions."""
    warnings.simplefilter("ignore")
    shutil.rmtree(out, ignore_errors=True)
    write_parents(out)
    results = {}
    with tempfile.TemporaryDirectory() as work:
        for name, recipe in CASES.items():
            config = MergeConfiguration.model_validate(
                json.loads(json.dumps(recipe), object_hook=lambda d: located(d, out))
            )
            run_merge(config, f"{work}/{name}", options=MergeOptions(quiet=True, copy_tokenizer=False))
            merged = load_file(f"{work}/{name}/model.safetensors")
            results |= {f"{name}/{tensor}": value for tensor, value in merged.items()}
    versions = {package: importlib.metadata.version(package) for package in ("mergekit", "torch")}
    save_file(results, out / "results.safetensors", {"recipes": json.dumps(CASES), "versions": json.dumps(versions)})


def located(entry: dict, out: Path) -> dict:
    """Return a part of a recipe with its models as folders."""
    return {key: str(out / value) if key in ("model", "base_model") else value for key, value in entry.items()}


def write_parents(out: Path) -> None:
    """Write a base and three models that differ from it by a little."""
    torch.manual_seed(0)
    config = LlamaConfig(
        num_hidden_layers=LAYERS,
        hidden_size=HIDDEN,
        intermediate_size=12,
        vocab_size=16,
        num_attention_heads=2,
        initializer_range=0.1,
    )
    model = LlamaForCausalLM(config)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    for parent in ("base", "a", "b", "c"):
        noise = 0.0 if parent == "base" else 0.03
        model.load_state_dict({name: value + noise * torch.randn_like(value) for name, value in start.items()})
        model.save_pretrained(out / parent)
        (out / parent / "generation_config.json").unlink()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
