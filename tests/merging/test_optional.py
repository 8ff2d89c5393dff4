"""Tensors that only some models have, or have in another shape."""

import json
import re

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from evomerge.errors import MergeError
from evomerge.merging import InPlaceMerger, Parents, check_recipe, merge_tensors, merge_to_folder
from evomerge.merging.optional import notes
from evomerge.recipes import Recipe
from evomerge.testing.tiny_models import tiny_family

HEAD = "classifier.weight"
POOLER = "pooler.dense.weight"


def bert(folder, model_class, parents=2, **fields):
    return tiny_family(folder, "bert", parents=parents, model_class=model_class, **fields)


def rewrite(folder, change):
    file = folder / "model.safetensors"
    tensors = {name: value.clone() for name, value in load_file(file).items()}
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def drop(folder, word):
    rewrite(folder, lambda tensors: [tensors.pop(name) for name in list(tensors) if word in name])


def recipe_of(paths, names, method="task_arithmetic", weight=0.5):
    fields = {"merge_method": method, "parameters": {"weight": weight}}
    fields |= {"base_model": str(paths["base"])} if method != "linear" else {}
    return Recipe.model_validate({**fields, "models": [{"model": str(paths[name])} for name in names]})


def problems(recipe, parents):
    return [str(problem) for problem in check_recipe(recipe, parents)]


def told(recipe, parents):
    """Return the notes, with folders as their last name."""
    return [re.sub(r"/\S*/(\w+)", r"\1", note) for note in notes(recipe, parents)]


def assert_both_engines_agree(recipe, parents, folder, base):
    merged = merge_to_folder(recipe, folder, parents=parents)
    name = json.loads((merged / "config.json").read_text())["architectures"][0]
    model, info = getattr(transformers, name).from_pretrained(merged, output_loading_info=True)
    assert not any(info.values()), info
    merger = InPlaceMerger(parents, base=base)
    merger.merge(recipe)
    resident = merger.model.state_dict()
    assert [key for key, value in model.state_dict().items() if not torch.equal(value, resident[key])] == []
    return load_file(merged / "model.safetensors")


def test_heads_that_the_base_has_no_place_for_are_left_out(tmp_path):
    """A masked language model and classifiers fine-tuned from it: heads and poolers differ, the encoder is merged."""
    classifiers = bert(tmp_path / "classifiers", "BertForSequenceClassification")
    base = bert(tmp_path / "lm", "BertForMaskedLM", parents=0)["base"]
    paths = {**classifiers, "base": base}
    recipe = recipe_of(paths, "ab")
    parents = Parents.open(recipe.parents())
    assert problems(recipe, parents) == []
    merged = assert_both_engines_agree(recipe, parents, tmp_path / "out", str(base))
    stored = load_file(base / "model.safetensors")
    assert merged.keys() == stored.keys()
    assert torch.equal(merged["cls.predictions.bias"], stored["cls.predictions.bias"])
    assert not torch.equal(
        merged["bert.encoder.layer.0.output.dense.weight"], stored["bert.encoder.layer.0.output.dense.weight"]
    )
    assert told(recipe, parents) == [
        "4 tensors of a, b left out, base has no place for them: bert.pooler.dense.bias, bert.pooler.dense.weight, "
        "classifier.bias, ...",
        "5 tensors missing in a, b, copied from base: cls.predictions.bias, "
        "cls.predictions.transform.LayerNorm.bias, cls.predictions.transform.LayerNorm.weight, ...",
    ]


def test_a_head_of_another_size_is_refused_with_both_shapes_and_a_way_out(tmp_path):
    paths = bert(tmp_path / "three", "BertForSequenceClassification", extra={"num_labels": 3})
    paths["b"] = bert(tmp_path / "two", "BertForSequenceClassification", extra={"num_labels": 2})["b"]
    refused = recipe_of(paths, "ab")
    parents = Parents.open(refused.parents())
    found = problems(refused, parents)
    assert len(found) == 2
    assert f"tensor {HEAD} is 3×32 in {paths['base']}, 2×32 in {paths['b']}" in found[1]
    assert "weight: [{filter: classifier, value: 0}" in found[1]
    with pytest.raises(MergeError, match=r"classifier.*does not have the shape"):
        dict(merge_tensors(refused, parents))
    only_b_apart = [{"filter": "classifier", "value": 0}, {"value": 0.5}]
    models = [{"model": str(paths["a"])}, {"model": str(paths["b"]), "parameters": {"weight": only_b_apart}}]
    followed = Recipe.model_validate(
        {"merge_method": "ties", "base_model": str(paths["base"]), "models": models, "parameters": {"weight": 0.5}}
    )
    assert problems(followed, parents) == []
    merged = assert_both_engines_agree(followed, parents, tmp_path / "out", str(paths["base"]))
    alone = dict(merge_tensors(recipe_of(paths, "a", "ties"), parents))
    assert torch.equal(merged[HEAD], alone[HEAD])
    assert not torch.equal(merged["bert.pooler.dense.weight"], alone["bert.pooler.dense.weight"])
    assert told(followed, parents) == [
        "2 tensors of another shape in b, merged from a: classifier.bias, classifier.weight"
    ]


def test_weight_0_for_all_takes_the_head_of_the_base(tmp_path):
    paths = bert(tmp_path / "three", "BertForSequenceClassification", extra={"num_labels": 3})
    for name, labels in (("a", 2), ("b", 5)):
        other = bert(tmp_path / name, "BertForSequenceClassification", extra={"num_labels": labels})
        paths[name] = other[name]
    recipe = recipe_of(paths, "ab", weight=[{"filter": "classifier", "value": 0}, {"value": 0.5}])
    parents = Parents.open(recipe.parents())
    assert problems(recipe, parents) == []
    merged = assert_both_engines_agree(recipe, parents, tmp_path / "out", str(paths["base"]))
    assert torch.equal(merged[HEAD], load_file(paths["base"] / "model.safetensors")[HEAD])
    assert told(recipe, parents) == [
        "2 tensors of another shape in a, b, copied from base: classifier.bias, classifier.weight"
    ]


@pytest.mark.parametrize("method", ["linear", "task_arithmetic"])
def test_a_pooler_missing_in_one_model_is_merged_from_the_others(tmp_path, method):
    paths = bert(tmp_path / "family", "BertModel")
    drop(paths["a"], "pooler")
    recipe = recipe_of(paths, "ab" if method == "task_arithmetic" else ("base", "a", "b"), method)
    parents = Parents.open(recipe.parents())
    assert problems(recipe, parents) == []
    merged = dict(merge_tensors(recipe, parents))
    base, b = (parents.tensor(str(paths[name]), POOLER).double() for name in ("base", "b"))
    expected = base + 0.5 * (b - base)  # linear: weights 0.5 and 0.5, normalised
    assert (merged[POOLER].double() - expected).abs().max() < 1e-6
    rest = "base, b" if method == "linear" else "b"
    assert told(recipe, parents) == [
        f"2 tensors missing in a, merged from {rest}: pooler.dense.bias, pooler.dense.weight"
    ]


def test_what_the_base_lacks_is_copied_from_the_only_model_that_has_it_and_refused_from_two(tmp_path):
    paths = bert(tmp_path / "family", "BertModel")
    drop(paths["base"], "pooler")
    one, two = recipe_of(paths, "a"), recipe_of(paths, "ab")
    parents = Parents.open(two.parents())
    assert problems(one, parents) == []
    assert torch.equal(dict(merge_tensors(one, parents))[POOLER], parents.tensor(str(paths["a"]), POOLER))
    assert_both_engines_agree(one, Parents.open(one.parents()), tmp_path / "out", str(paths["base"]))
    found = problems(two, parents)
    assert f"tensor {POOLER} is missing in the base {paths['base']}, and task_arithmetic needs it there" in found[1]
    with pytest.raises(MergeError, match=r"pooler.*needs it in the base"):
        dict(merge_tensors(two, parents))
    assert problems(recipe_of(paths, "ab", "linear"), parents) == []


def test_biases_of_attention_that_a_parent_lacks_come_from_the_others(tmp_path):
    paths = tiny_family(tmp_path / "with", "llama", parents=2, extra={"attention_bias": True})
    paths["b"] = tiny_family(tmp_path / "without", "llama", parents=2)["b"]
    recipe = recipe_of(paths, "ab")
    parents = Parents.open(recipe.parents())
    assert problems(recipe, parents) == []
    merged = assert_both_engines_agree(recipe, parents, tmp_path / "out", str(paths["base"]))
    name = "model.layers.1.self_attn.q_proj.bias"
    assert torch.equal(merged[name], dict(merge_tensors(recipe_of(paths, "a"), parents))[name])
    assert told(recipe, parents)[0].startswith("8 tensors missing in b, merged from a: model.layers.0.self_attn.k_proj")


def test_layers_with_parts_that_the_merged_model_has_no_place_for_are_refused(tmp_path):
    paths = tiny_family(tmp_path / "without", "llama", parents=2)
    paths["b"] = tiny_family(tmp_path / "with", "llama", parents=2, extra={"attention_bias": True})["b"]
    recipe = recipe_of(paths, "ab")
    found = problems(recipe, Parents.open(recipe.parents()))
    assert len(found) == 1
    assert f"8 tensors in layers of {paths['b']} have no place in those of {paths['base']}: model.layers.0" in found[0]


@pytest.mark.parametrize(
    ("word", "where"),
    [
        ("layers.1.mlp.up_proj", "model.layers.1.mlp.up_proj.weight"),  # other layers have it
        ("mlp.up_proj", "model.layers.0.mlp.up_proj.weight"),  # a matrix that the class needs
        ("layers.1.input_layernorm", "model.layers.1.input_layernorm.weight"),
        ("embed_tokens", "model.embed_tokens.weight"),
        ("model.norm", "model.norm.weight"),
    ],
)
@pytest.mark.parametrize("lacking", ["base", "a"])
def test_what_a_model_cannot_lack_is_refused_by_tensor_and_model(tmp_path, word, where, lacking):
    paths = tiny_family(tmp_path, "llama", parents=1)
    drop(paths[lacking], word)
    recipe = recipe_of(paths, "a")
    parents = Parents.open(recipe.parents())
    assert f"tensor {where} is missing in {paths[lacking]}" in problems(recipe, parents)[0]
    assert any(where in str(problem) for problem in parents.problems())


def test_buffers_of_old_files_that_no_class_uses_are_left_out_without_a_word(tmp_path):
    """GPT-2 files of old versions hold the causal mask."""
    paths = tiny_family(tmp_path / "family", "gpt2", parents=2)
    mask = {"transformer.h.0.attn.bias": torch.ones(1, 1, 8, 8, dtype=torch.uint8)}
    mask |= {"transformer.h.0.attn.masked_bias": torch.tensor(-1e4)}
    rewrite(paths["a"], lambda tensors: tensors.update(mask))
    recipe = recipe_of(paths, "ab")
    parents = Parents.open(recipe.parents())
    assert problems(recipe, parents) == []
    assert told(recipe, parents) == []
    assert not mask.keys() & assert_both_engines_agree(recipe, parents, tmp_path / "out", str(paths["base"])).keys()


def test_integer_and_bool_buffers_are_copied_from_the_base(tmp_path):
    paths = tiny_family(tmp_path / "family", "bert", parents=2)
    for index, path in enumerate(paths.values()):
        extra = {"bert.embeddings.position_ids": torch.arange(8)[None] + index}
        extra |= {"bert.embeddings.flags": torch.tensor([index == 0, True])}
        rewrite(path, lambda tensors, extra=extra: tensors.update(extra))
    recipe = recipe_of(paths, "ab")
    parents = Parents.open(recipe.parents())
    assert problems(recipe, parents) == []
    merged = dict(merge_tensors(recipe, parents))
    assert merged["bert.embeddings.position_ids"].tolist() == [list(range(8))]
    assert merged["bert.embeddings.flags"].tolist() == [True, True]
    merger = InPlaceMerger(parents, base=str(paths["base"]))
    merger.merge(recipe)
    assert merger._resident.targets is not None
