"""Make the stored results for merged vocabularies: tiny Llamas with different tokenizers and mergekit's merges of them.

Run with the Python of an environment that has mergekit (ours has not); imports nothing of ours:

    PYTHON_WITH_MERGEKIT tests/references/mergekit_tokenizers_golden.py tests/golden/mergekit_tokenizers
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
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = ["<unk>", "<s>", "</s>"]
TOKENS = {  # name → words, special tokens, rows of the embedding beyond them
    "base": (["merge", "model", "weight", "river", "stone"], [], 3),
    "a": (["river", "model", "bread", "garden", "merge"], ["<|im_start|>", "<|im_end|>"], 0),
    "b": (["garden", "stone", "model", "silver", "bread", "window"], ["<|im_end|>"], 1),
}
TEXTS = ["merge model <|im_start|> river", "bread<|im_end|>garden stone unknown", "silver window </s> weight"]
WEIGHTED = [{"model": n, "parameters": {"weight": w}} for n, w in zip(("base", "a", "b"), (0.2, 0.5, 0.4), strict=True)]
LINEAR = {"merge_method": "linear", "models": WEIGHTED}
TIES = {"merge_method": "ties", "models": WEIGHTED[1:], "parameters": {"density": 0.6}, "base_model": "base"}
SLERP = {
    "merge_method": "slerp",
    "models": [{"model": "base"}, {"model": "b"}],
    "parameters": {"t": 0.4},
    "base_model": "base",
}
CHOSEN = {
    "<|im_start|>": {"source": "a"},
    "<|im_end|>": {"source": "b", "force": True},
    "</s>": {"source": {"kind": "zero"}, "force": True},
    "<|new|>": {"source": {"kind": "model_token", "model": "a", "token": "<s>"}},
    "river": {"source": {"kind": "model_token", "model": "b", "token_id": 4}, "force": True},
}
CASES = {
    "linear-base": {**LINEAR, "base_model": "base", "tokenizer_source": "base"},
    "linear-union": {**LINEAR, "base_model": "base", "tokenizer_source": "union"},
    "linear-parent": {**LINEAR, "base_model": "base", "tokenizer_source": "a"},
    "linear-average": {**LINEAR, "tokenizer_source": "b"},
    "linear-tokens": {
        **LINEAR,
        "base_model": "base",
        "tokenizer": {"source": "union", "tokens": CHOSEN, "pad_to_multiple_of": 8},
    },
    "ties-union": {**TIES, "tokenizer_source": "union"},
    "ties-tokens": {**TIES, "tokenizer": {"source": "b", "tokens": {"river": {"source": "a"}}}},
    "slerp-base": {**SLERP, "tokenizer_source": "base"},
    "slerp-padded": {**SLERP, "tokenizer": {"source": "union", "pad_to_multiple_of": 16}},
}


def main(out: Path) -> None:
    """Write the parents and `results.safetensors`, whose metadata has recipes, vocabularies, texts and versions."""
    warnings.simplefilter("ignore")
    shutil.rmtree(out, ignore_errors=True)
    write_parents(out)
    results, said = {}, {}
    with tempfile.TemporaryDirectory() as work:
        for name, recipe in CASES.items():
            config = MergeConfiguration.model_validate(located(recipe, out))
            run_merge(config, f"{work}/{name}", options=MergeOptions(quiet=True, copy_tokenizer=False))
            tokenizer = AutoTokenizer.from_pretrained(f"{work}/{name}")
            said[name] = {
                "recipe": recipe,
                "vocabulary": tokenizer.get_vocab(),
                "texts": {text: tokenizer(text)["input_ids"] for text in TEXTS},
                "vocab_size": json.loads(Path(f"{work}/{name}/config.json").read_text())["vocab_size"],
            }
            merged = load_file(f"{work}/{name}/model.safetensors")
            results |= {f"{name}/{key}": merged[key] for key in ("model.embed_tokens.weight", "lm_head.weight")}
    versions = {package: importlib.metadata.version(package) for package in ("mergekit", "torch", "transformers")}
    save_file(results, out / "results.safetensors", {"cases": json.dumps(said), "versions": json.dumps(versions)})


def located(part, out: Path, key: str = ""):
    """Return a part of a recipe with its models as folders; "base" as a tokenizer's source is mergekit's word."""
    if isinstance(part, dict):
        return {name: located(value, out, name) for name, value in part.items()}
    if isinstance(part, list):
        return [located(each, out, key) for each in part]
    is_model = part in TOKENS and (part != "base" or key in ("model", "base_model"))
    return str(out / part) if is_model else part


def write_parents(out: Path) -> None:
    """Write models whose tokenizers know different words, under different ids."""
    torch.manual_seed(0)
    for name, (words, special, padding) in TOKENS.items():
        ids = {token: index for index, token in enumerate([*SPECIAL, *words])}
        backend = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
        backend.pre_tokenizer = pre_tokenizers.Whitespace()
        roles = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **roles)
        tokenizer.add_special_tokens({"additional_special_tokens": special})
        config = LlamaConfig(
            num_hidden_layers=1,
            hidden_size=8,
            intermediate_size=8,
            vocab_size=len(tokenizer.get_vocab()) + padding,
            num_attention_heads=1,
            initializer_range=0.1,
        )
        LlamaForCausalLM(config).save_pretrained(out / name)
        tokenizer.save_pretrained(out / name)
        (out / name / "generation_config.json").unlink()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
