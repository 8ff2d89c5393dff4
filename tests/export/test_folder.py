"""The exported folder: whole or absent, complete, and loadable with transformers alone."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from evomerge.errors import ExportError, MergeError
from evomerge.export.card import describe
from evomerge.export.contents import check_folder
from evomerge.export.folder import verify_loads, write_model
from evomerge.merging import InPlaceMerger, Parents
from evomerge.recipes import Recipe, parse_recipe, read_recipe
from evomerge.testing.tiny_models import tiny_family


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return tiny_family(tmp_path_factory.mktemp("family"), parents=2)


@pytest.fixture(scope="module")
def recipe(family: dict[str, Path]) -> Recipe:
    return parse_recipe(f"""
merge_method: linear
models:
  - {{model: {family["a"]}, parameters: {{weight: 0.3}}}}
  - {{model: {family["b"]}, parameters: {{weight: 0.7}}}}
dtype: float32
""")


@pytest.fixture
def exported(recipe: Recipe, tmp_path: Path) -> Path:
    return write_model(recipe, tmp_path / "out", card=describe(recipe, "mix"), max_shard_size="20KB")


def test_the_folder_loads_with_transformers_alone_and_is_the_merge(
    exported: Path, recipe: Recipe, family: dict[str, Path]
) -> None:
    check_folder(exported)
    model, tokenizer = verify_loads(exported)
    merger = InPlaceMerger(Parents.open(recipe.parents()), base=str(family["a"]))
    merger.merge(recipe)
    ids = AutoTokenizer.from_pretrained(exported)("2 + 3", return_tensors="pt").input_ids
    with torch.no_grad():
        expected = merger.model(ids).logits
        assert torch.equal(model(ids).logits, expected)
        assert torch.equal(AutoModelForCausalLM.from_pretrained(exported)(ids).logits, expected)
    assert tokenizer.chat_template


def test_the_folder_holds_shards_recipe_card_and_the_parents_tokenizer(
    exported: Path, recipe: Recipe, family: dict[str, Path]
) -> None:
    assert len(list(exported.glob("model-*-of-*.safetensors"))) > 1
    assert read_recipe(exported / "recipe.yaml") == recipe
    assert (exported / "README.md").read_text().startswith("---\n")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (exported / name).read_bytes() == (family["a"] / name).read_bytes()


def test_nothing_is_left_when_the_merge_fails(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> Path:
        raise MergeError("no")

    monkeypatch.setattr("evomerge.export.folder.merge_to_folder", fail)
    with pytest.raises(MergeError):
        write_model(recipe, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_said_in_words(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("evomerge.export.folder.merge_to_folder", fail)
    with pytest.raises(ExportError, match=r"cannot write .*No space left on device; free some space"):
        write_model(recipe, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_something_is_never_overwritten_unasked(recipe: Recipe, exported: Path) -> None:
    (exported / "mine.txt").write_text("kept")
    with pytest.raises(ExportError, match="exists and is not empty"):
        write_model(recipe, exported)
    assert (exported / "mine.txt").read_text() == "kept"
    write_model(recipe, exported, overwrite=True)
    assert not (exported / "mine.txt").exists()
    assert not (exported / "README.md").exists()


def test_the_former_export_comes_back_when_the_last_step_fails(
    recipe: Recipe, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace

    def fail(source: Path, target: Path) -> None:
        if target == exported:
            raise OSError(5, "Input/output error")
        replace(source, target)

    before = {path.name: path.read_bytes() for path in exported.iterdir()}
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(ExportError, match="Input/output error"):
        write_model(recipe, exported, overwrite=True)
    assert {path.name: path.read_bytes() for path in exported.iterdir()} == before
    monkeypatch.undo()
    write_model(recipe, exported, overwrite=True)
    assert list(exported.parent.iterdir()) == [exported]
    assert not (exported / "README.md").exists()


def test_overwrite_spares_what_is_no_export(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ExportError, match=r"not an exported model \(no recipe.yaml\)"):
        write_model(recipe, tmp_path, overwrite=True)
    with pytest.raises(ExportError, match="is a file"):
        write_model(recipe, tmp_path / "thesis.tex")


def test_an_empty_folder_is_filled(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    check_names = {path.name for path in write_model(recipe, tmp_path / "out").iterdir()}
    assert {"config.json", "recipe.yaml", "model.safetensors"} <= check_names


def test_every_missing_file_is_listed_at_once(exported: Path) -> None:
    shard = sorted(exported.glob("model-*"))[0]
    shard.unlink()
    (exported / "config.json").unlink()
    (exported / "tokenizer.json").unlink()
    with pytest.raises(ExportError) as caught:
        check_folder(exported)
    for words in ("config.json is missing", "no tokenizer file", f"{shard.name} is missing"):
        assert words in str(caught.value)


def test_a_truncated_shard_and_a_tensor_not_in_its_shard_are_found(exported: Path) -> None:
    first, second, *_ = sorted(exported.glob("model-*"))
    first.write_bytes(first.read_bytes()[:-4])
    tensors = load_file(second)
    lost = sorted(tensors)[0]
    save_file({**{k: v for k, v in tensors.items() if k != lost}, "x": torch.zeros(1)}, second)
    with pytest.raises(ExportError) as caught:
        check_folder(exported)
    assert f"{first.name} is broken" in str(caught.value)
    assert f"{second.name} lacks {lost!r}" in str(caught.value)


def test_an_index_that_is_no_index_is_found(exported: Path) -> None:
    (exported / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ExportError, match=r"index.json cannot be read"):
        check_folder(exported)


@pytest.fixture
def model(family: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of a parent to break."""
    return Path(shutil.copytree(family["a"], tmp_path / "model"))


def test_a_missing_and_a_foreign_weight_are_named(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.0.foreign"] = tensors.pop("model.norm.weight")
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ExportError) as caught:
        verify_loads(model)
    assert "missing keys: model.norm.weight" in str(caught.value)
    assert "unexpected keys: model.layers.0.foreign" in str(caught.value)


def test_weights_that_are_not_finite_are_found(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ExportError, match="logits are not finite"):
        verify_loads(model)


def test_wrong_shapes_are_an_export_error(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"intermediate_size": 40}))
    with pytest.raises(ExportError, match=r"model.*(mismatched|size)"):
        verify_loads(model)


def test_a_folder_without_config_is_an_export_error(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="transformers cannot load"):
        verify_loads(tmp_path)
