"""The flags of ``evomerge merge`` that concern reading and writing."""

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from evomerge.checkpoints import Checkpoint
from evomerge.cli.merge import command
from evomerge.errors import CheckpointError, ConfigError
from evomerge.testing.tiny_models import tiny_family


@pytest.fixture
def recipe(tmp_path):
    """A recipe file of two models, one of which has pickled weights only."""
    paths = tiny_family(tmp_path / "family", parents=2)
    tensors = load_file(paths["b"] / "model.safetensors")
    torch.save(tensors, paths["b"] / "pytorch_model.bin")
    (paths["b"] / "model.safetensors").unlink()
    file = tmp_path / "recipe.yaml"
    file.write_text(
        f"merge_method: linear\nmodels: [{{model: {paths['a']}}}, {{model: {paths['b']}}}]\n"
        "parameters: {weight: 0.5}\n"
    )
    return file, paths, tensors


def merge(*arguments):
    return CliRunner().invoke(command, [str(argument) for argument in arguments], catch_exceptions=False)


def test_pickled_weights_are_read_only_of_models_that_are_named(recipe, tmp_path):
    file, paths, tensors = recipe
    with pytest.raises(CheckpointError, match=r"only pickled weights .*--allow-pickle MODEL"):
        merge(file, tmp_path / "out")
    with pytest.raises(CheckpointError, match="only pickled weights"):
        merge(file, tmp_path / "out", "--allow-pickle", paths["a"])
    with pytest.raises(ConfigError, match=r"--allow-pickle: the recipe has no model 'b'"):
        merge(file, tmp_path / "out", "--allow-pickle", "b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["family", "recipe.yaml"]
    merge(file, tmp_path / "out", "--allow-pickle", paths["b"])
    out, first = Checkpoint(tmp_path / "out"), Checkpoint(paths["a"])
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(out.tensor(name), (first.tensor(name) + tensors[name]) / 2)


def test_pickles_are_allowed_in_the_stages_of_a_file_too(recipe, tmp_path):
    file, paths, _ = recipe
    models = f"models: [{{model: middle}}, {{model: {paths['a']}}}]"
    result = f"merge_method: linear\n{models}\nparameters: {{weight: 0.5}}\n"
    file.write_text(f"name: middle\n{file.read_text()}---\n{result}")
    merge(file, tmp_path / "out", "--allow-pickle", paths["b"])
    assert Checkpoint(tmp_path / "out").num_layers == 2
