"""Merged vocabularies are mergekit's: the same tokens, the same ids for texts, the same rows of embeddings and heads.

New tokens of a union get their ids in an order that mergekit takes from hashes, anew in each process; ours is fixed. So
rows are compared token by token, and ids as tokens. Rows are bounded as in test_mergekit_merges.py: they are copies, or
means, which mergekit rounds after each sum and we round once.
"""

import json
import os
import random
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from evomerge.checkpoints import Checkpoint
from evomerge.merging import Parents, check_recipe, merge_tensors, merge_to_folder
from evomerge.merging.tokenizer_files import merged_tokenizer
from evomerge.recipes import Recipe, write_recipe
from evomerge.testing.tiny_vocabularies import KINDS, WORDS, tiny_vocabularies

HERE = Path(__file__).parent
GOLDEN = HERE.parent / "golden" / "mergekit_tokenizers"
BOUNDS = {torch.float32: 1e-6, torch.float16: 5e-3, torch.bfloat16: 3e-2}
EXTRA = {"a": ["<|im_start|>", "<|im_end|>"], "b": ["<|im_end|>", "<|tool|>"]}
SIZES = {"base": 290, "a": 300, "b": 310}
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def stored():
    with safe_open(GOLDEN / "results.safetensors", framework="pt") as opened:
        return json.loads(opened.metadata()["cases"])


@pytest.mark.parametrize("case", stored())
def test_stored_results_are_reproduced(case):
    said = stored()[case]
    each = Recipe.model_validate(said["recipe"])
    parents = Parents({name: Checkpoint(GOLDEN / name, name) for name in ("base", "a", "b")})
    assert check_recipe(each, parents) == []
    tokenizer = merged_tokenizer(each, parents.viewed(each).checkpoints)
    vocabulary = tokenizer.get_vocab()
    assert vocabulary.keys() == said["vocabulary"].keys()
    tokens = {index: token for token, index in said["vocabulary"].items()}
    for text, ids in said["texts"].items():
        assert tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"]) == [tokens[index] for index in ids]
    merged, results = dict(merge_tensors(each, parents)), load_file(GOLDEN / "results.safetensors")
    order = [torch.tensor([ids[token] for token in vocabulary]) for ids in (vocabulary, said["vocabulary"])]
    rest = torch.arange(len(vocabulary), said["vocab_size"])
    for name in (EMBED, HEAD):
        pair = [merged[name], results[f"{case}/{name}"]]
        assert pair[0].shape == pair[1].shape
        ours, theirs = (tensor[torch.cat((ids, rest))] for tensor, ids in zip(pair, order, strict=True))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6 * float(theirs.abs().max()))


@pytest.fixture(scope="module")
def mergekit(tmp_path_factory):
    """Return a function that merges recipes with mergekit and returns the folders."""
    python = os.environ.get("EVOMERGE_MERGEKIT_PYTHON")
    if not python:
        pytest.skip("set EVOMERGE_MERGEKIT_PYTHON to the Python of an environment with mergekit")

    def merge(recipes):
        work = tmp_path_factory.mktemp("mergekit")
        jobs = [{"recipe": write_recipe(r), "out": str(work / f"{i}"), "seed": i} for i, r in enumerate(recipes)]
        (work / "jobs.json").write_text(json.dumps(jobs))
        command = [python, str(HERE / "mergekit_merge.py"), str(work / "jobs.json")]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500)
        assert done.returncode == 0, done.stderr
        assert str(work) not in done.stderr, done.stderr  # where a merge fails, its folder is named
        return [work / f"{i}" for i in range(len(recipes))]

    return merge


def recipe(paths, method, **more):
    """Return a recipe over all models of a family."""
    base = str(paths["base"])
    if method == "slerp":
        models = [{"model": base}, {"model": str(paths["a"])}]
        fields = {"base_model": base, "parameters": {"t": [0.2, 0.7]}}
    else:
        models = [
            {"model": str(path), "parameters": {"weight": weight}}
            for path, weight in zip(paths.values(), (0.2, 0.5, 0.4), strict=True)
        ]
        fields = {"base_model": base}
    if method == "ties":  # in half precision mergekit's rounding decides signs where models have nothing in common
        models, fields = models[1:], {**fields, "parameters": {"density": 0.6}, "dtype": "float32"}
    return Recipe.model_validate({"merge_method": method, "models": models, **fields, **more})


def settings(paths):
    """Return the ways of choosing a vocabulary that are compared, each beside what the others vary."""
    a, b = str(paths["a"]), str(paths["b"])
    tokens = {
        "<|im_start|>": {"source": a},
        "<|im_end|>": {"source": b, "force": True},
        "</s>": {"source": {"kind": "zero"}, "force": True},
        "<|new|>": {"source": {"kind": "model_token", "model": a, "token": "<s>"}},
        "<|newer|>": {"source": {"kind": "model_token", "model": b, "token_id": 7}, "force": True},
        "<|newest|>": {"source": {"kind": "zero"}},
    }
    return {
        "base": {"tokenizer_source": "base"},
        "union": {"tokenizer_source": "union"},
        "parent": {"tokenizer_source": a},
        "padded": {"tokenizer": {"source": b, "pad_to_multiple_of": 16}},
        "tokens": {"tokenizer": {"source": "union", "tokens": tokens, "pad_to_multiple_of": 64}},
        "parent-tokens": {"tokenizer": {"source": a, "tokens": {"</s>": {"source": b, "force": True}}}},
    }


def compare(ours: Path, theirs: Path):
    """Assert that two merged folders have the same vocabulary and weights, ids of tokens apart."""
    tokenizers = [AutoTokenizer.from_pretrained(folder) for folder in (ours, theirs)]
    vocabularies = [tokenizer.get_vocab() for tokenizer in tokenizers]
    assert vocabularies[0].keys() == vocabularies[1].keys()
    sizes = [json.loads((folder / "config.json").read_text())["vocab_size"] for folder in (ours, theirs)]
    assert sizes[0] == sizes[1]
    draw = random.Random(0)
    for _ in range(20):
        text = " ".join(draw.choices([*WORDS, "<|im_start|>", "<|im_end|>user", "</s>", "<|new|>"], k=12))
        cut = [tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"]) for tokenizer in tokenizers]
        assert cut[0] == cut[1]
    tokens = list(vocabularies[0])
    order = [torch.tensor([vocabulary[token] for token in tokens]) for vocabulary in vocabularies]
    rest = torch.arange(len(tokens), sizes[0])
    merged = [load_file(folder / "model.safetensors") for folder in (ours, theirs)]
    assert merged[0].keys() == merged[1].keys()
    for name in merged[0]:
        pair = [tensors[name] for tensors in merged]
        assert pair[0].shape == pair[1].shape
        assert pair[0].dtype == pair[1].dtype
        if pair[0].shape[0] == sizes[0]:
            pair = [tensor[torch.cat((ids, rest))] for tensor, ids in zip(pair, order, strict=True)]
        apart = (pair[0].double() - pair[1].double()).abs().max() / pair[1].double().abs().max().clamp_min(1e-30)
        assert apart <= BOUNDS[pair[0].dtype], name


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_tokenizer_is_merged_alike(mergekit, tmp_path, kind):
    paths = tiny_vocabularies(tmp_path / "models", kind, sizes=SIZES, extra=EXTRA, hidden=16)
    recipes = [recipe(paths, "linear", **chosen) for chosen in settings(paths).values()]
    for index, (each, theirs) in enumerate(zip(recipes, mergekit(recipes), strict=True)):
        compare(merge_to_folder(each, tmp_path / f"{index}"), theirs)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2"])
def test_every_method_sees_the_same_rows(mergekit, tmp_path, architecture, dtype):
    paths = tiny_vocabularies(
        tmp_path / "models",
        "bytes",
        sizes=SIZES,
        extra=EXTRA,
        architecture=architecture,
        dtype=dtype,
        hidden=16,
        seed=1,
    )
    chosen = settings(paths)
    recipes = [
        recipe(paths, method, **chosen[name], **more)
        for method in ("linear", "slerp", "ties", "task_arithmetic")
        for name, more in (("union", {}), ("parent", {"dtype": "float32"}), ("base", {}))
        # Of equally large differences, which are many in half precision, TIES keeps those that come first: the order
        # of new rows, which is another one in mergekit, then decides.
        if (method, name) != ("ties", "union") or dtype == "float32"
    ]
    recipes += [recipe(paths, "linear", **chosen["tokens"], dtype="float32", out_dtype="bfloat16")]
    for index, (each, theirs) in enumerate(zip(recipes, mergekit(recipes), strict=True)):
        compare(merge_to_folder(each, tmp_path / f"{index}"), theirs)


@pytest.mark.slow
def test_tokens_without_rows_and_rows_without_tokens(mergekit, tmp_path):
    """The base has padding; a parent's tokenizer speaks of tokens that its embedding has no rows for."""
    paths = tiny_vocabularies(
        tmp_path / "models", sizes=SIZES, extra=EXTRA, hidden=16, padding={"base": 22, "b": -1, "a": 3}
    )
    new = {"<|new|>": {"source": {"kind": "zero"}}, "<|im_start|>": {"source": str(paths["a"])}}
    ways = ({"tokenizer_source": "union"}, {"tokenizer": {"source": "base", "tokens": new}})
    recipes = [recipe(paths, "linear", **chosen) for chosen in ways]
    for index, (each, theirs) in enumerate(zip(recipes, mergekit(recipes), strict=True)):
        compare(merge_to_folder(each, tmp_path / f"{index}"), theirs)


@pytest.mark.slow
def test_stacked_slices_take_rows_from_the_models_of_their_slice(mergekit, tmp_path):
    """The embedding is the first slice's, the head the last one's: tokens that its models lack are zero rows."""
    paths = tiny_vocabularies(tmp_path / "models", sizes={"a": 290, "b": 300}, extra=EXTRA, hidden=16)
    slices = [{"sources": [{"model": str(path), "layer_range": [0, 2]}]} for path in paths.values()]
    each = Recipe.model_validate({"merge_method": "passthrough", "slices": slices, "tokenizer_source": str(paths["b"])})
    ours = merge_to_folder(each, tmp_path / "ours")
    compare(ours, mergekit([each])[0])
    merged, tokenizer = load_file(ours / "model.safetensors"), AutoTokenizer.from_pretrained(ours)
    assert not merged[EMBED][tokenizer.convert_tokens_to_ids("<|tool|>")].any()
    assert merged[HEAD][tokenizer.convert_tokens_to_ids("<|tool|>")].any()


@pytest.mark.slow
def test_without_a_base_missing_rows_are_averages(mergekit, tmp_path):
    """The first model stands for the base that is not there; mergekit takes any, so its vocabulary is a subset here."""
    paths = tiny_vocabularies(tmp_path / "models", sizes={"c": 280, **SIZES}, extra=EXTRA, dtype="bfloat16", hidden=16)
    models = [{"model": str(path), "parameters": {"weight": 1}} for path in paths.values()]
    each = Recipe.model_validate({"merge_method": "linear", "models": models, "tokenizer_source": str(paths["b"])})
    assert check_recipe(each, Parents.open(each.parents())) == []
    compare(merge_to_folder(each, tmp_path / "ours"), mergekit([each])[0])


def test_the_result_loads_and_generates(tmp_path):
    paths = tiny_vocabularies(tmp_path / "models", sizes=SIZES, extra=EXTRA, hidden=16)
    out = merge_to_folder(recipe(paths, "ties", **settings(paths)["tokens"]), tmp_path / "out")
    tokenizer, model = AutoTokenizer.from_pretrained(out), AutoModelForCausalLM.from_pretrained(out)
    inputs = tokenizer("<|im_start|>user merge<|im_end|>", return_tensors="pt")
    assert model.generate(**inputs, max_new_tokens=3, do_sample=False).shape[1] == inputs["input_ids"].shape[1] + 3
