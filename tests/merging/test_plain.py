"""Parents that are plain tensors, of no model of transformers: both engines merge them, to the same bits."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge.checkpoints import Checkpoint
from evomerge.errors import MergeError
from evomerge.merging import METHODS, InPlaceMerger, Parents, check_recipe, merge_to_folder
from evomerge.merging.paths import path_problems
from evomerge.recipes import PathStep, Recipe, routed_recipe
from evomerge.testing.tiny_models import tiny_family

SHAPES = {"hidden.weight": (16, 8), "hidden.bias": (16,), "layers.0.weight": (4, 16), "layers.1.weight": (4, 4)}


def write(folder: Path, seed: int, dtype: torch.dtype = torch.float32, config: dict | None = None) -> str:
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in SHAPES.items()}
    folder.mkdir()
    save_file({**tensors, "step": torch.tensor(seed)}, folder / "model.safetensors")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.fixture
def models(tmp_path: Path) -> dict[str, str]:
    return {name: write(tmp_path / name, seed) for seed, name in enumerate(("base", "a", "b"))}


def recipe_of(method: str, models: dict[str, str], **fields: object) -> Recipe:
    entry = METHODS[method]
    parents = [models["a"]] if method == "slerp" else [models["a"], models["b"]]
    weighted = any(parameter.name == "weight" for parameter in entry.parameters)
    given = [{"model": each, "parameters": {"weight": 0.3} if weighted else {}} for each in parents]
    base = {"base_model": models["base"]} if entry.takes_base else {}
    parameters = {"density": 0.5} if any(p.name == "density" for p in entry.parameters) else {}
    parameters |= {"t": 0.4} if method == "slerp" else {}
    return Recipe.model_validate({"merge_method": method, "models": given, "parameters": parameters, **base, **fields})


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "ties", "dare_ties", "slerp", "tsv_merge"])
def test_both_engines_make_the_same_bits(models: dict[str, str], tmp_path: Path, method: str) -> None:
    parents = Parents.open(list(models.values()))
    assert parents.problems() == []
    recipe = recipe_of(method, models)
    assert check_recipe(recipe, parents) == []
    merger = InPlaceMerger(parents, base=models["base"])
    before = dict(merger.model)
    for other in (0.9, 0.3):  # a merge in between leaves nothing behind
        merger.merge(recipe.model_copy(update={"seed": int(10 * other)}))
    merger.merge(recipe)
    assert merger.tokenizer is None
    assert all(merger.model[name] is before[name] for name in before), "the same tensors after each merge"
    written = load_file(merge_to_folder(recipe, tmp_path / "out") / "model.safetensors")
    assert written.keys() == before.keys()
    assert all(torch.equal(merger.model[name], written[name]) for name in written)
    assert written["step"] == (0 if METHODS[method].takes_base else 1), "what is no number to be merged is copied"


def test_a_merge_is_the_formula(models: dict[str, str]) -> None:
    parents = Parents.open(list(models.values()))
    merger = InPlaceMerger(parents, base=models["base"])
    merger.merge(recipe_of("linear", models, parameters={"normalize": False}))
    for name in SHAPES:
        expected = 0.3 * parents.tensor(models["a"], name) + 0.3 * parents.tensor(models["b"], name)
        torch.testing.assert_close(merger.model[name], expected)


@pytest.mark.parametrize("config", [None, {}, {"hidden": 16, "model_type": "perceptron"}])
def test_an_export_holds_the_weights_the_recipe_and_the_config_as_it_was(tmp_path: Path, config: dict | None) -> None:
    models = {name: write(tmp_path / name, seed, config=config) for seed, name in enumerate(("base", "a", "b"))}
    assert Checkpoint(tmp_path / "a").is_plain
    out = merge_to_folder(recipe_of("linear", models), tmp_path / "out")
    expected = {"model.safetensors", "recipe.yaml"} | ({"config.json"} if config else set())
    assert {file.name for file in out.iterdir()} == expected
    if config:
        assert json.loads((out / "config.json").read_text()) == config
    assert Checkpoint(out).is_plain


@pytest.mark.parametrize("config", [{"model_type": "llama"}, {"architectures": ["Mine"]}, {"auto_map": {"x": "y"}}])
def test_what_names_an_architecture_is_not_plain(tmp_path: Path, config: dict) -> None:
    write(tmp_path / "a", 0, config=config)
    assert not Checkpoint(tmp_path / "a").is_plain


def test_the_resident_may_have_another_dtype(models: dict[str, str]) -> None:
    merger = InPlaceMerger(Parents.open(list(models.values())), base=models["base"], dtype="bfloat16")
    merger.merge(recipe_of("linear", models, dtype="float32"))
    assert {each.dtype for name, each in merger.model.items() if name != "step"} == {torch.bfloat16}
    assert merger.model["step"].dtype == torch.int64


def test_a_tensor_that_a_parent_lacks_or_has_in_another_shape_is_a_problem(tmp_path: Path) -> None:
    a, b, c = (write(tmp_path / name, seed) for seed, name in enumerate("abc"))
    tensors = load_file(Path(b) / "model.safetensors")
    save_file({name: each for name, each in tensors.items() if name != "hidden.bias"}, Path(b) / "model.safetensors")
    save_file({**tensors, "hidden.bias": torch.zeros(17)}, Path(c) / "model.safetensors")
    (missing,) = Parents.open([a, b]).problems()
    assert f"{b} lacks 1 tensors that {a} has: hidden.bias" in missing.what
    (shape,) = Parents.open([a, c]).problems()
    assert "tensor hidden.bias is 16 in" in shape.what


def test_paths_and_several_gpus_are_refused(models: dict[str, str]) -> None:
    parents = Parents.open(list(models.values()))
    path = routed_recipe([PathStep(models["a"], 0), PathStep(models["b"], 0)], dtype="float32")
    (problem,) = path_problems(path, parents)
    assert "plain tensors" in problem.what
    with pytest.raises(MergeError, match="a path through layers needs models of transformers"):
        InPlaceMerger(parents, base=models["base"]).merge(path)
    with pytest.raises(MergeError, match="no layers to lay over GPUs"):
        InPlaceMerger(parents, base=models["base"], spread=True)


def test_language_models_are_not_plain(tmp_path: Path) -> None:
    family = tiny_family(tmp_path)
    assert not Checkpoint(family["base"]).is_plain
