"""Names of tensors: what transformers makes of them, and one set of names for several files."""

import json
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from evomerge.checkpoints import Checkpoint, one_naming, tied_tensors
from evomerge.checkpoints.skeleton import skeleton
from evomerge.testing.tiny_models import FAMILIES, tiny_family

CONVERTED = ("qwen3_moe", "mixtral", "jamba")  # their experts are stacked on loading


@pytest.fixture(scope="module")
def families(tmp_path_factory):
    folder = tmp_path_factory.mktemp("families")
    return {each: tiny_family(folder / each, each, parents=0)["base"] for each in FAMILIES}


def loaded(folder):
    name = json.loads((folder / "config.json").read_text())["architectures"][0]
    return getattr(transformers, name).from_pretrained(folder)


@pytest.mark.parametrize("architecture", FAMILIES)
def test_the_skeleton_is_the_loaded_model_without_its_weights(families, architecture):
    checkpoint = Checkpoint(families[architecture])
    known, model = skeleton(checkpoint), loaded(families[architecture])
    state = model.state_dict()
    assert known.class_name == type(model).__name__
    assert known.shapes == {name: tuple(tensor.shape) for name, tensor in state.items()}
    named = {name: known.name_of(name) for name in checkpoint.tensors}
    as_it_is = {stored: name for stored, (name, pattern) in named.items() if pattern is None}
    for stored, name in as_it_is.items():
        assert torch.equal(checkpoint.tensor(stored), state[name]), stored
    assert bool(len(named) - len(as_it_is)) == (architecture in CONVERTED)
    assert {name for name, _ in named.values()} | set(known.tied) == set(known.shapes)


@pytest.mark.parametrize("architecture", FAMILIES)
def test_tied_tensors_are_those_that_the_model_shares(families, architecture):
    checkpoint = Checkpoint(families[architecture])
    state = loaded(families[architecture]).state_dict(keep_vars=True)
    known = skeleton(checkpoint)
    tied = tied_tensors(checkpoint)
    shared = {}
    for name, tensor in state.items():
        shared.setdefault(tensor.data_ptr(), []).append(name)
    expected = {frozenset(names) for names in shared.values() if len(names) > 1}
    groups = {}
    for alias, source in tied.items():
        groups.setdefault(source, {known.name_of(source)[0]}).add(alias)
        assert source in checkpoint.tensors
    assert {frozenset(names) for names in groups.values()} == expected


def test_whichever_of_the_tied_tensors_is_stored_counts(tmp_path):
    """Old files of BART and T5 keep an embedding under the encoder's name, or the head's."""
    folder = tiny_family(tmp_path, "bart", parents=0)["base"]
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors.pop("model.shared.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    tied = tied_tensors(Checkpoint(folder))
    assert set(tied.values()) == {"lm_head.weight"}
    assert "model.shared.weight" in tied


def test_models_of_one_naming_are_returned_as_they_are(families):
    checkpoints = {name: Checkpoint(families["llama"], name) for name in "ab"}
    assert one_naming(checkpoints) is checkpoints
    assert one_naming({}) == {}


def test_a_model_of_another_class_of_the_family_takes_the_firsts_names(tmp_path):
    folder = tiny_family(tmp_path / "head", "bert", parents=0, model_class="BertForSequenceClassification")["base"]
    bare = tiny_family(tmp_path / "bare", "bert", parents=0, model_class="BertModel")["base"]
    first, second = one_naming({"bare": Checkpoint(bare), "head": Checkpoint(folder)}).values()
    assert set(second.tensors) == set(first.tensors) | {"classifier.weight", "classifier.bias"}
    assert second.tensor("encoder.layer.0.output.dense.bias").data_ptr() != 0
    other_way = one_naming({"head": Checkpoint(folder), "bare": Checkpoint(bare)})["bare"]
    assert all(name.startswith("bert.") for name in other_way.tensors)


def test_an_unknown_architecture_keeps_its_names(tmp_path):
    folder = tiny_family(tmp_path / "one", "gpt2", parents=0)["base"]
    config = json.loads((folder / "config.json").read_text()) | {"architectures": ["NovelModel"]}
    (folder / "config.json").write_text(json.dumps(config))
    other = tmp_path / "two"
    shutil.copytree(folder, other)
    tensors = load_file(folder / "model.safetensors")
    save_file({f"x.{name}": tensor for name, tensor in tensors.items()}, other / "model.safetensors")
    checkpoints = {"one": Checkpoint(folder), "two": Checkpoint(other)}
    assert one_naming(checkpoints) is checkpoints
    assert skeleton(checkpoints["one"]) is None
    assert tied_tensors(checkpoints["one"]) == {}
