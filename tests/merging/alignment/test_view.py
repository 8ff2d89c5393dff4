"""Recipes with ``align``: models seen in another's order, in both engines, and refused where that cannot be."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from evomerge.checkpoints import Checkpoint, cache_folder
from evomerge.errors import CheckpointError, ConfigError, MergeError
from evomerge.merging import InPlaceMerger, Parents, merge_to_folder
from evomerge.merging.alignment import view
from evomerge.merging.alignment.specification import simple_specification
from evomerge.merging.alignment.view import aligned
from evomerge.merging.checks import check_recipe
from evomerge.recipes import Recipe
from evomerge.testing.permuted_models import write_pair

FILE = "model.safetensors"
ARCHITECTURES = [
    "llama",
    "llama-tied",
    "mistral",
    "qwen2",
    "gpt2",
    "bert",
    "bert-classifier",
    "vit",
    "qwen3_moe",
    "phi3",
]


def recipe_for(folder, method="weight_matching", merge="linear", **align):
    models = [{"model": str(folder / name), "parameters": {"weight": 0.5}} for name in ("plain", "permuted")]
    return Recipe.model_validate(
        {"merge_method": merge, "models": models, "align": {"method": method, **align}, "dtype": "float32"}
    )


def opened(folder):
    return Parents.open([str(folder / "plain"), str(folder / "permuted")])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_permuted_model_is_seen_as_the_model_that_it_was(pair, name):
    plain, permuted = Checkpoint(pair(name) / "plain"), Checkpoint(pair(name) / "permuted")
    changed = [n for n in plain.tensors if not torch.equal(plain.tensor(n), permuted.tensor(n))]
    assert len(changed) > len(plain.tensors) / 2
    seen = aligned(permuted, plain)
    assert [n for n in plain.tensors if not torch.equal(plain.tensor(n), seen.tensor(n))] == []
    assert {n: i.shape for n, i in seen.tensors.items()} == {n: i.shape for n, i in plain.tensors.items()}


def test_both_engines_merge_aligned_models(pair, tmp_path):
    folder = pair("llama")
    recipe = recipe_for(folder)
    out = merge_to_folder(recipe, tmp_path / "out")
    plain = load_file(folder / "plain" / FILE)
    for name, tensor in load_file(out / FILE).items():
        torch.testing.assert_close(tensor, plain[name], rtol=1e-6, atol=0)
    merger = InPlaceMerger(opened(folder), base=str(folder / "plain"))
    merger.merge(recipe)
    loaded = AutoModelForCausalLM.from_pretrained(out).state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in merger.model.state_dict().items())


def test_any_method_and_a_base_as_the_model_to_align_to(pair, tmp_path):
    folder = pair("qwen2")
    recipe = Recipe.model_validate(
        {
            "merge_method": "ties",
            "base_model": str(folder / "plain"),
            "models": [{"model": str(folder / "permuted"), "parameters": {"weight": 1.0}}],
            "parameters": {"density": 0.5},
            "align": {"method": "weight_matching"},
        }
    )
    out = merge_to_folder(recipe, tmp_path / "out")
    plain = load_file(folder / "plain" / FILE)
    merged = load_file(out / FILE)
    assert all(torch.equal(tensor, plain[name]) for name, tensor in merged.items())


def test_the_model_named_keeps_its_order(pair, tmp_path):
    folder = pair("llama")
    merged = load_file(merge_to_folder(recipe_for(folder, to=str(folder / "permuted")), tmp_path / "out") / FILE)
    permuted = load_file(folder / "permuted" / FILE)
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, permuted[name], rtol=1e-6, atol=0)


def test_optimal_transport_undoes_a_permutation_too(pair):
    for name in ("llama", "bert", "vit", "qwen3_moe"):
        plain, permuted = Checkpoint(pair(name) / "plain"), Checkpoint(pair(name) / "permuted")
        seen = aligned(permuted, plain, "ot_fusion")
        assert [n for n in plain.tensors if not torch.equal(plain.tensor(n), seen.tensor(n))] == []


def test_a_view_computes_what_its_model_computes(tmp_path, pair):
    """Unrelated models: the orders are whatever they are, the function must stay."""
    write_pair(tmp_path / "other", "gpt2", seed=7)
    source = Checkpoint(tmp_path / "other" / "plain")
    seen = aligned(source, Checkpoint(pair("gpt2") / "plain"))
    stored = {name: seen.tensor(name).clone() for name in seen.tensors}
    assert not torch.equal(stored["transformer.wte.weight"], source.tensor("transformer.wte.weight"))
    model = AutoModelForCausalLM.from_pretrained(source.folder)
    ids = torch.arange(5, 30)[None]
    shown = type(model).from_pretrained(None, config=model.config, state_dict=stored)
    with torch.no_grad():
        expected, found = model(ids).logits, shown(ids).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_old_names_are_understood(pair, tmp_path):
    """GPT-2 on the Hub has no prefix."""
    folder = tmp_path / "old"
    folder.mkdir()
    tensors = load_file(pair("gpt2") / "permuted" / FILE)
    save_file({name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}, folder / FILE)
    (folder / "config.json").write_text((pair("gpt2") / "permuted" / "config.json").read_text())
    plain = Checkpoint(pair("gpt2") / "plain")
    seen = aligned(Checkpoint(folder), plain)
    assert set(seen.tensors) != set(plain.tensors)
    for name in seen.tensors:
        assert torch.equal(seen.tensor(name), plain.tensor(f"transformer.{name}"))


def test_what_was_found_is_kept_and_used_again(pair, monkeypatch):
    plain, permuted = Checkpoint(pair("llama") / "plain"), Checkpoint(pair("llama") / "permuted")
    first = aligned(permuted, plain)
    assert not (cache_folder() / "alignments").exists()  # nothing is matched before a tensor is asked for
    expected = {name: first.tensor(name) for name in first.tensors}
    kept = list((cache_folder() / "alignments").iterdir())
    assert [file.suffix for file in kept] == [".safetensors"]
    monkeypatch.setattr(view, "_find", None)
    again = aligned(permuted, plain)
    assert all(torch.equal(again.tensor(name), tensor) for name, tensor in expected.items())
    assert again.fingerprint == first.fingerprint != permuted.fingerprint
    monkeypatch.undo()
    kept[0].write_bytes(b"damaged")
    assert aligned(permuted, plain).movements.keys() == first.movements.keys()


def test_fingerprints_tell_settings_apart(pair):
    plain, permuted = Checkpoint(pair("llama") / "plain"), Checkpoint(pair("llama") / "permuted")
    settings = [
        ("weight_matching", {}),
        ("weight_matching", {"seed": 1}),
        ("weight_matching", {"sweeps": 3}),
        ("ot_fusion", {}),
        ("ot_fusion", {"regularisation": 0.1}),
    ]
    prints = [aligned(permuted, plain, method, parameters=values).fingerprint for method, values in settings]
    assert len({*prints, plain.fingerprint, permuted.fingerprint}) == len(settings) + 2
    assert aligned(permuted, plain, parameters={"seed": 0}).fingerprint == prints[0]
    assert aligned(plain, permuted).fingerprint not in prints


def test_wider_parents_are_carried_over(pair, tmp_path):
    """A Llama whose neurons were doubled, and halved in what they write, is the Llama that it was."""
    folder = tmp_path / "wide"
    folder.mkdir()
    tensors = load_file(pair("llama") / "permuted" / FILE)
    for name, tensor in tensors.items():
        if "gate_proj" in name or "up_proj" in name:
            tensors[name] = tensor.repeat(2, 1)
        if "down_proj" in name:
            tensors[name] = (tensor / 2).repeat(1, 2)
    save_file(tensors, folder / FILE)
    config = json.loads((pair("llama") / "permuted" / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 80}))
    plain = Checkpoint(pair("llama") / "plain")
    models = [str(plain.folder), str(folder)]
    recipe = Recipe.model_validate(
        {
            "merge_method": "linear",
            "models": [{"model": model, "parameters": {"weight": 0.5}} for model in models],
            "align": {"method": "ot_fusion"},
        }
    )
    out = load_file(merge_to_folder(recipe, tmp_path / "out") / FILE)
    for name, tensor in out.items():
        torch.testing.assert_close(tensor, plain.tensor(name), rtol=1e-5, atol=1e-6)
    with pytest.raises(MergeError, match="weight_matching permutes equally many, ot_fusion"):
        aligned(Checkpoint(folder), plain)


@pytest.mark.parametrize(
    ("align", "where", "message"),
    [
        ({"method": "weight_maching"}, "align.method", "did you mean 'weight_matching'?"),
        ({"method": "weight_matching", "to": "nobody"}, "align.to", "none of the recipe's models"),
        ({"method": "weight_matching", "parameters": {"sed": 1}}, "align.parameters.sed", "did you mean 'seed'?"),
        ({"method": "weight_matching", "parameters": {"seed": 1.5}}, "align.parameters.seed", "a whole number"),
        ({"method": "weight_matching", "parameters": {"sweeps": 0}}, "align.parameters.sweeps", "at least 1"),
        ({"method": "ot_fusion", "parameters": {"regularisation": -1}}, "align.parameters", "is a number, at least 0"),
        ({"method": "ot_fusion", "parameters": {"metric": "words"}}, "align.parameters", "is one of wts, acts"),
        ({"method": "ot_fusion", "parameters": {"metric": "acts"}}, "statistics", "evomerge statistics --kinds sample"),
        ({"method": "pleas"}, "statistics", "pleas needs samples"),
    ],
)
def test_check_recipe_reports_what_is_wrong(pair, align, where, message):
    problems = check_recipe(recipe_for(pair("llama"), **align), opened(pair("llama")))
    assert [problem for problem in problems if problem.where.startswith(where) and message in str(problem)]
    with pytest.raises(ConfigError, match=re.escape(message)):
        opened(pair("llama")).viewed(recipe_for(pair("llama"), **align))


def test_models_of_other_architectures_and_depths_are_refused(pair, tmp_path):
    with pytest.raises(MergeError, match="do not correspond: only one of them has"):
        aligned(Checkpoint(pair("gpt2") / "plain"), Checkpoint(pair("llama") / "plain"))


def test_models_that_are_not_understood_are_refused_before_work_starts(pair, tmp_path):
    for name in ("plain", "permuted"):
        shutil.copytree(pair("llama") / name, tmp_path / name)
        config = json.loads((tmp_path / name / "config.json").read_text())
        (tmp_path / name / "config.json").write_text(json.dumps(config | {"model_type": "digits"}))
    problems = check_recipe(recipe_for(tmp_path), opened(tmp_path))
    assert any("knows no model type 'digits'" in problem.what and problem.where == "align" for problem in problems)


def test_a_missing_tensor_is_named(pair, tmp_path):
    folder = tmp_path / "lacking"
    shutil.copytree(pair("llama") / "permuted", folder)
    tensors = load_file(folder / FILE)
    del tensors["model.norm.weight"]
    save_file(tensors, folder / FILE)
    with pytest.raises(CheckpointError, match=r"lacks model.norm.weight, which a model of its config has"):
        aligned(Checkpoint(folder), Checkpoint(pair("llama") / "plain"))


def test_a_simple_specification_must_fit_its_shapes():
    with pytest.raises(ValueError, match="group 'h' has 3 members, but 4 in tensor b"):
        simple_specification({"a": ("h",), "b": ("h",)}, {"a": (3,), "b": (4,)})
    with pytest.raises(ValueError, match="tensor a has 2 dimensions, the specification 1"):
        simple_specification({"a": ("h",)}, {"a": (3, 3)})
