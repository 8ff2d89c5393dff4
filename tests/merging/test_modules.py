"""Models of several modules merged module by module, and models taken for another architecture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from evomerge.merging import Parents, check_recipe, merge_to_folder
from evomerge.recipes import Recipe
from evomerge.testing.tiny_models import tiny_family

MODULES = {
    "t5": ("encoder", "decoder", "shared"),
    "llava": ("text_decoder", "vision_tower", "multi_modal_projector"),
}
LAYERS = 3


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    folder = tmp_path_factory.mktemp("families")
    made = {name: tiny_family(folder / name, name, layers=LAYERS, parents=2) for name in MODULES}
    return {name: {key: str(path) for key, path in family.items()} for name, family in made.items()}


def models(family: dict[str, str]) -> list[dict[str, Any]]:
    return [
        {"model": family["a"], "parameters": {"weight": [0.1, 0.9]}},
        {"model": family["b"], "parameters": {"weight": [{"filter": "norm", "value": 0.2}, {"value": 0.5}]}},
    ]


def merged(recipe: dict[str, Any], out: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    read = Recipe.model_validate(recipe)
    assert check_recipe(read, Parents.open(read.parents())) == []
    folder = merge_to_folder(read, out)
    return load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("architecture", MODULES)
def test_the_same_models_in_every_module_are_the_plain_recipe(
    families: dict[str, dict[str, str]], tmp_path: Path, architecture: str
) -> None:
    inputs = {"models": models(families[architecture])}
    plain, config = merged({"merge_method": "linear", **inputs}, tmp_path / "plain")
    modules = dict.fromkeys(MODULES[architecture], inputs)
    apart, other = merged({"merge_method": "linear", "modules": modules}, tmp_path / "apart")
    assert config == other
    assert plain.keys() == apart.keys()
    assert all(torch.equal(plain[name], apart[name]) for name in plain)


def stacked(family: dict[str, str], architecture: str, module: str) -> dict[str, Any]:
    """Return a recipe that adds a layer to one module and takes the rest from the first model."""
    slices = [
        {"sources": [{"model": family["a"], "layer_range": [0, 2]}]},
        {"sources": [{"model": family["b"], "layer_range": [1, 3]}]},
    ]
    modules: dict[str, Any] = {name: {"models": [{"model": family["a"]}]} for name in MODULES[architecture]}
    modules[module] = {"slices": slices}
    return {"merge_method": "passthrough", "modules": modules}


@pytest.mark.parametrize(
    ("architecture", "module", "where", "layer"),
    [
        ("t5", "encoder", ["num_layers"], "encoder.block.{}.layer.0.SelfAttention.q.weight"),
        ("t5", "decoder", ["num_decoder_layers"], "decoder.block.{}.layer.0.SelfAttention.q.weight"),
        (
            "llava",
            "text_decoder",
            ["text_config", "num_hidden_layers"],
            "language_model.model.layers.{}.mlp.up_proj.weight",
        ),
    ],
)
def test_layers_of_one_module_are_stacked_and_its_config_says_so(
    families: dict[str, dict[str, str]], tmp_path: Path, architecture: str, module: str, where: list[str], layer: str
) -> None:
    family = families[architecture]
    tensors, config = merged(stacked(family, architecture, module), tmp_path / "out")
    a, b = (load_file(Path(family[name]) / "model.safetensors") for name in "ab")
    sources = [(a, 0), (a, 1), (b, 1), (b, 2)]
    assert all(torch.equal(tensors[layer.format(i)], model[layer.format(j)]) for i, (model, j) in enumerate(sources))
    assert layer.format(4) not in tensors
    original = json.loads((Path(family["a"]) / "config.json").read_text())
    for part in where[:-1]:
        config, original = config[part], original[part]
    assert config[where[-1]] == 4
    assert {k: v for k, v in config.items() if k != where[-1]} == {k: v for k, v in original.items() if k != where[-1]}


def test_a_stacked_module_loads_whole(families: dict[str, dict[str, str]], tmp_path: Path) -> None:
    merged(stacked(families["t5"], "t5", "encoder"), tmp_path / "out")
    _, info = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]


def test_a_depth_that_the_config_cannot_say_is_refused(families: dict[str, dict[str, str]]) -> None:
    recipe = stacked(families["t5"], "t5", "encoder")
    recipe["modules"]["encoder.block"] = recipe["modules"].pop("encoder")
    recipe["modules"]["default"] = recipe["modules"].pop("shared")
    read = Recipe.model_validate(recipe)
    problems = check_recipe(read, Parents.open(read.parents()))
    assert [problem.where for problem in problems] == ["modules.encoder.block"]
    assert "has 3 layers, the recipe gives it 4" in str(problems[0])


def test_an_architecture_is_written_into_the_config(tmp_path: Path) -> None:
    family = tiny_family(tmp_path / "family", parents=2)
    model = {"model": {"path": str(family["a"])}, "override_architecture": "MistralForCausalLM"}
    inputs = [
        {"model": model, "parameters": {"weight": 0.5}},
        {"model": str(family["b"]), "parameters": {"weight": 0.5}},
    ]
    renamed, config = merged({"merge_method": "linear", "models": inputs}, tmp_path / "renamed")
    inputs[0]["model"] = str(family["a"])
    plain, other = merged({"merge_method": "linear", "models": inputs}, tmp_path / "plain")
    assert config == {**other, "architectures": ["MistralForCausalLM"]}
    assert all(torch.equal(renamed[name], plain[name]) for name in plain)
