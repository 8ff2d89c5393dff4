"""Names in files that become names of what is written: none leads out of the folder that it belongs to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evomerge.errors import ConfigError, EvomergeError, ExportError, RunError
from evomerge.experiments.calibration import bank_path
from evomerge.experiments.nested import Node, read_tree, write_tree
from evomerge.experiments.schema import parse_experiment
from evomerge.export.contents import INDEX, check_folder
from evomerge.recipes import parse_recipes, yaml

EXPERIMENT = "parents: {a: ./a, b: ./b}\nfitness: {objectives: [{task: arithmetic}]}\n"
ESCAPES = ["../x", "..", "a/../../x", "/tmp/x", "a/b", "a\\b/..", ".hidden", "", "a\n/x"]


def inside(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve()) and path.resolve() != folder.resolve()


@pytest.mark.parametrize("name", ESCAPES)
def test_the_name_of_an_experiment_is_that_of_one_folder(name: str) -> None:
    with pytest.raises(ConfigError):
        parse_experiment(yaml.loads(f"name: {json.dumps(name)}\n{EXPERIMENT}", "x"))


@pytest.mark.parametrize("name", ESCAPES)
def test_the_nickname_of_a_parent_is_a_plain_word(name: str) -> None:
    with pytest.raises(ConfigError):
        parse_experiment(yaml.loads(EXPERIMENT.replace("a:", f"{json.dumps(name)}:", 1), "x"))


@pytest.mark.parametrize("name", ["../x", "..", "a/../x", "/tmp/x", "a//b", ".hidden", "a/.b", "a\\b"])
def test_the_name_of_a_stage_leads_nowhere_else(name: str) -> None:
    recipe = "merge_method: linear\nmodels: [{model: x}, {model: y}]\nparameters: {weight: 1.0}\n"
    with pytest.raises(EvomergeError, match="cannot be the name of a stage"):
        parse_recipes(f"name: {json.dumps(name)}\n{recipe}---\n{recipe.replace('x}', json.dumps(name) + '}')}")


@pytest.mark.parametrize("name", ["../x", "a/b", "/tmp/x", "..", "日本 語:*?"])
def test_an_objective_may_be_called_anything_and_its_bank_still_lies_in_its_folder(name: str, tmp_path: Path) -> None:
    path = bank_path(tmp_path, name, ["other", name])
    assert path.parent == tmp_path
    assert inside(path, tmp_path)


@pytest.mark.parametrize("name", ["../x", "..", "/tmp/x", "a/b", ""])
def test_a_tree_that_names_a_folder_elsewhere_is_refused(name: str, tmp_path: Path) -> None:
    good = Node("merge-1", "a", "b", ("near",), 3)
    file = tmp_path / "tree.json"
    file.write_text(write_tree([good]))
    assert read_tree(file) == (good,)
    file.write_text(write_tree([good, Node(name, "merge-1", "c", ("near",), 3)]))
    with pytest.raises(RunError, match="cannot be the name of a folder"):
        read_tree(file)


@pytest.mark.parametrize("shard", ["../model.safetensors", "/etc/passwd", "inner/model.safetensors"])
def test_an_index_that_names_shards_elsewhere_is_not_uploaded(shard: str, tmp_path: Path) -> None:
    for name in ("config.json", "README.md", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"w": shard}}))
    with pytest.raises(ExportError, match="lies outside the folder"):
        check_folder(tmp_path)
