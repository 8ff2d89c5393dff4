"""What is refused before any work, and in which words."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge.errors import CheckpointError
from evomerge.merging import Parents, check_recipe
from evomerge.merging.compatibility import rope
from evomerge.recipes import parse_recipe
from evomerge.testing.tiny_models import tiny_family, tiny_tokenizer


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    return tiny_family(tmp_path_factory.mktemp("family"))


@pytest.fixture(scope="module")
def parents(family):
    return Parents.open([str(path) for path in family.values()])


def problems(text, family, parents):
    """Check a recipe in which BASE, A, B and C stand for the family's folders."""
    for name, path in family.items():
        text = text.replace(name.upper(), str(path))
    return [str(problem) for problem in check_recipe(parse_recipe(text), parents)]


TIES = "merge_method: ties\nbase_model: BASE\nmodels:\n  - {model: A, parameters: {weight: 0.5}}\n"


def test_good_recipes_have_no_problems(family, parents):
    assert problems(TIES, family, parents) == []
    assert problems(TIES + "parameters: {int8_mask: true, density: [1, 0.5, 0]}", family, parents) == []
    assert parents.problems() == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("merge_method: dare-ties\nmodels: [{model: A}]", "merge_method: unknown merge method 'dare-ties'"),
        (TIES + "parameters: {desnity: 0.5}", "parameters.desnity: ties has no parameter 'desnity'"),
        (TIES + "parameters: {desnity: 0.5}", "did you mean 'density'"),
        (TIES + "parameters: {density: 1.5}", "parameters.density: density is 1.5, outside [0, 1]"),
        (TIES + "parameters: {density: [0.5, -1]}", "density is -1, outside [0, 1]"),
        (
            TIES + "parameters: {density: [{filter: mlp, value: 7}, {value: 1}]}",
            "density is 7, outside [0, 1]",
        ),
        (TIES + "parameters: {density: much}", "density is a number, found 'much'"),
        (TIES.replace("weight", "lambda"), "'lambda' belongs to the merge as a whole"),
        (TIES.replace("weight: 0.5", "density: 0.5"), "ties needs the parameter 'weight'"),
        (TIES.replace("weight: 0.5", "weight: [{filter: mlp, value: 1}]"), "no value for 15 tensors"),
        (TIES.replace("base_model: BASE\n", ""), "base_model: ties needs a base model"),
        (
            "merge_method: slerp\nmodels: [{model: A}, {model: B}]\nparameters: {t: 1}",
            "slerp needs a base model",
        ),
        (
            "merge_method: slerp\nbase_model: BASE\nmodels: [{model: A}, {model: B}]\nparameters: {t: 1}",
            "slerp merges exactly 2 models (a base counts), this recipe has 3",
        ),
        ("merge_method: slerp\nbase_model: BASE\nmodels: [{model: A}]", "slerp needs the parameter 't'"),
        (
            "merge_method: passthrough\nmodels: [{model: A}, {model: B}]",
            "passthrough merges exactly 1 models",
        ),
        (
            "merge_method: linear\nmodels: [{model: who/knows, parameters: {weight: 1}}]",
            "'who/knows' is not among",
        ),
        (
            "merge_method: passthrough\nslices: [{sources: [{model: A, layer_range: [0, 9]}]}]",
            "layer_range [0, 9] reaches beyond",
        ),
        (
            "merge_method: ties\nbase_model: BASE\nparameters: {weight: 1}\n"
            "slices: [{sources: [{model: A, layer_range: [0, 2]}]}]",
            "is not among the sources of this slice",
        ),
        (
            TIES + "tokenizer_source: nobody/knows",
            "the tokenizer source 'nobody/knows' is none of the recipe's",
        ),
        (TIES + "chat_template: chatlm", "chat_template 'chatlm' is no template"),
        (
            TIES + "tokenizer: {source: base, tokens: {x: {source: nobody/knows}}}",
            "the embedding of 'x' is to come from 'nobody/knows', which is none of the recipe's models",
        ),
    ],
)
def test_problems_are_named(family, parents, text, expected):
    found = problems(text, family, parents)
    assert any(expected in problem for problem in found), found


def test_all_problems_are_found_at_once(family, parents):
    text = TIES.replace("base_model: BASE\n", "") + "parameters: {desnity: 0.5, density: 2}"
    assert len(problems(text, family, parents)) == 3


@pytest.fixture
def altered(family, tmp_path):
    """Return a function that copies parent `a` with other config fields and tensors, and opens it."""

    def alter(config=None, tensors=None, drop=()):
        out = shutil.copytree(family["a"], tmp_path / "altered")
        fields = json.loads((out / "config.json").read_text()) | (config or {})
        (out / "config.json").write_text(json.dumps(fields))
        stored = {n: t for n, t in load_file(out / "model.safetensors").items() if n not in drop} | (tensors or {})
        save_file(stored, out / "model.safetensors")
        return Parents.open([str(family["base"]), str(out)])

    return alter


def test_shapes_that_differ_are_named_with_both(altered):
    parents = altered(tensors={"model.layers.1.mlp.up_proj.weight": torch.ones(32, 16)})
    (problem,) = parents.problems()
    assert "tensor model.layers.1.mlp.up_proj.weight is 48×32 in" in problem.what
    assert "32×16 in" in problem.what


def test_vocabularies_that_differ_are_refused_by_size_and_token(altered):
    parents = altered(
        {"vocab_size": 70},
        {"model.embed_tokens.weight": torch.ones(70, 32), "lm_head.weight": torch.ones(70, 32)},
    )
    tiny_tokenizer(70).save_pretrained(list(parents.checkpoints.values())[1].folder)
    found = "\n".join(map(str, parents.problems()))
    assert "6 tokens only in" in found
    assert "vocab_size is 64 in" in found
    assert "tensor lm_head.weight is 64×32 in" in found
    assert "say which vocabulary the merged model has: tokenizer_source: base, union, or one of the models" in found


def test_padded_vocabularies_are_told_from_different_ones(altered):
    """T17: the same tokens, more rows."""
    rows = {"model.embed_tokens.weight": torch.ones(128, 32), "lm_head.weight": torch.ones(128, 32)}
    assert altered({"vocab_size": 128}, rows).problems() == []


@pytest.mark.parametrize(
    "config",
    [
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
    ],
)
def test_other_rotations_are_refused(altered, config):
    """T6: weights learnt for one rotation do not fit another."""
    if "rope_scaling" in config:
        config = {**config, "rope_parameters": None}
    assert any("rotary embeddings differ" in problem.what for problem in altered(config).problems())


def test_rotations_are_compared_by_meaning():
    assert rope({"rope_theta": 10000}) == rope({"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}})
    assert rope({"rope_scaling": {"type": "linear", "factor": 2}, "rope_theta": 5.0}) == rope(
        {"rope_parameters": {"rope_type": "linear", "factor": 2, "rope_theta": 5.0}}
    )
    assert rope({}) == {}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"model_type": "mistral"}, "model_type is 'llama' in"),
        ({"num_attention_heads": 8}, "num_attention_heads is 4 in"),
        ({"quantization_config": {"bits": 4}}, "its weights are quantised"),
    ],
)
def test_configs_that_differ_in_meaning_are_refused(altered, config, expected):
    assert any(expected in problem.what for problem in altered(config).problems())


def test_missing_tensors_are_named(altered):
    found = [problem.what for problem in altered(drop=("model.norm.weight",)).problems()]
    assert any("lacks 1 tensors that" in what and "model.norm.weight" in what for what in found)


def test_models_of_other_depth_are_refused(family, tmp_path):
    deeper = tiny_family(tmp_path, parents=0, layers=3)["base"]
    parents = Parents.open([str(family["base"]), str(deeper)])
    assert any("has 2 layers" in p.what and "has 3" in p.what for p in parents.problems())


def test_all_missing_parents_are_named_at_once(family, tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere-1(.|\n)*nowhere-2"):
        Parents.open([str(tmp_path / "nowhere-1"), str(family["a"]), str(tmp_path / "nowhere-2")])
