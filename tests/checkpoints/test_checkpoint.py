"""Opening parents: headers only, memory-mapped weights, and clear refusals of what cannot be read."""

import json
import re
import shutil
import struct
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge.checkpoints import Checkpoint, layer_of
from evomerge.errors import CheckpointError
from evomerge.testing.tiny_models import tiny_family


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    return tiny_family(tmp_path_factory.mktemp("family"), parents=1, dtype="bfloat16")


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    return tiny_family(tmp_path_factory.mktemp("sharded"), parents=1, shard_size="60KB", layers=3)["base"]


@pytest.fixture
def broken(sharded, tmp_path):
    """A copy of a sharded model, to be damaged."""
    return shutil.copytree(sharded, tmp_path / "broken")


def model_of(folder, tensors):
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    save_file(tensors, folder / "model.safetensors")
    return Checkpoint(folder)


def test_tensors_are_those_of_the_file(family):
    checkpoint = Checkpoint(family["base"])
    stored = load_file(family["base"] / "model.safetensors")
    assert list(checkpoint.tensors) == sorted(stored)
    for name, tensor in stored.items():
        assert torch.equal(checkpoint.tensor(name), tensor)
        assert checkpoint.tensors[name].shape == tuple(tensor.shape)
        assert checkpoint.tensors[name].dtype == tensor.dtype
    assert checkpoint.num_bytes == sum(tensor.nbytes for tensor in stored.values())


def test_shards_are_one_model(sharded):
    checkpoint = Checkpoint(sharded)
    files = {info.file.name for info in checkpoint.tensors.values()}
    assert len(files) > 1
    stored = {}
    for file in files:
        stored |= load_file(sharded / file)
    assert all(torch.equal(checkpoint.tensor(name), stored[name]) for name in checkpoint.tensors)
    assert checkpoint.num_layers == 3


def test_layer_indices_come_from_the_names():
    assert layer_of("model.layers.12.mlp.experts.3.up_proj.weight") == 12
    assert layer_of("h.0.attn.c_attn.weight") == 0
    assert layer_of("model.embed_tokens.weight") is None


def test_opening_reads_no_weights_and_views_are_mapped_not_copied(tmp_path):
    checkpoint = model_of(tmp_path / "big", {"weight": torch.zeros(64 * 2**20, dtype=torch.uint8)})
    code = f"""
import resource
from evomerge.checkpoints import Checkpoint
checkpoint = Checkpoint({str(checkpoint.folder)!r})
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
view = checkpoint.tensor("weight")
assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 8_000, "opened by reading"
assert "weight" in checkpoint.tensors
print(sum("model.safetensors" in line for line in open("/proc/self/maps")))
"""
    run = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) >= 1


def test_writing_to_a_view_changes_neither_the_file_nor_other_readers(tmp_path):
    checkpoint = model_of(tmp_path / "model", {"weight": torch.ones(1000)})
    before = (tmp_path / "model" / "model.safetensors").read_bytes()
    checkpoint.tensor("weight").zero_()
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == before
    assert torch.equal(Checkpoint(checkpoint.folder).tensor("weight"), torch.ones(1000))


def test_scalars_empty_integer_and_unaligned_tensors_are_read(tmp_path):
    tensors = {
        "a": torch.tensor(3.0),
        "b": torch.zeros(0, 4),
        "c": torch.arange(5),
        "d": torch.ones(3, dtype=torch.bool),
    }
    checkpoint = model_of(tmp_path / "model", tensors)
    assert all(torch.equal(checkpoint.tensor(name), tensor) for name, tensor in tensors.items())
    header = json.dumps({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    header += b" " * (-len(header) % 8 + 1)  # as written by old libraries, without padding to eight bytes
    data = torch.tensor([1.5, -2.0]).numpy().tobytes()
    (tmp_path / "model" / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + data)
    assert Checkpoint(tmp_path / "model").tensor("x").tolist() == [1.5, -2.0]


def test_fingerprint_tells_models_apart_and_survives_a_copy(family, tmp_path):
    copied = shutil.copytree(family["base"], tmp_path / "copy")
    base, parent = Checkpoint(family["base"]).fingerprint, Checkpoint(family["a"]).fingerprint
    assert Checkpoint(copied).fingerprint == base
    assert re.fullmatch("[0-9a-f]{16}", base)
    assert base != parent


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_inf_are_found_by_name(tmp_path, dtype, bad):
    poisoned = torch.ones(1000, dtype=dtype)
    poisoned[777] = bad
    tensors = {"fine": torch.ones(8, dtype=dtype), "poisoned": poisoned, "ints": torch.arange(3)}
    assert model_of(tmp_path / "model", tensors).check_finite() == ["poisoned"]


def test_missing_shard_is_named(broken):
    (broken / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"1 of 2 shards missing: model-00002.*copy or download"):
        Checkpoint(broken)


def test_truncated_file_is_named_with_both_sizes(broken):
    file = broken / "model-00001-of-00002.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=rf"{file.name}: truncated: its header speaks of \d+ bytes, it has"):
        Checkpoint(broken)


@pytest.mark.parametrize("content", [b"", b"short", struct.pack("<Q", 1 << 60) + b"{}", b"\x02" + b"\0" * 7 + b"{]"])
def test_damaged_header_is_refused(broken, content):
    (broken / "model-00001-of-00002.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model-00001.*(truncated, or no safetensors|header is damaged)"):
        Checkpoint(broken)


def test_unreadable_index_is_named(broken):
    (broken / "model.safetensors.index.json").write_text('{"weight_map": ')
    with pytest.raises(CheckpointError, match=r"index\.json: unreadable index"):
        Checkpoint(broken)


def test_index_that_points_out_of_the_folder_is_refused(broken):
    (broken / "model.safetensors.index.json").write_text('{"weight_map": {"x": "../other/model.safetensors"}}')
    with pytest.raises(CheckpointError, match="lies outside the folder"):
        Checkpoint(broken)


def test_index_that_promises_too_much_is_refused(broken):
    index = json.loads((broken / "model.safetensors.index.json").read_text())
    index["weight_map"]["ghost.weight"] = "model-00001-of-00002.safetensors"
    (broken / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"lacks tensor 'ghost\.weight'"):
        Checkpoint(broken)


def test_pickled_weights_are_refused_and_the_way_out_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(CheckpointError, match=r"only pickled weights \(pytorch_model\.bin\).*save_pretrained"):
        Checkpoint(tmp_path)


def test_folders_that_are_no_models_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        Checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"no \*\.safetensors file"):
        Checkpoint(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="a LoRA adapter, not a whole model"):
        Checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json: cannot be read as JSON"):
        Checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="no such folder"):
        Checkpoint(tmp_path / "nowhere")


def test_unknown_tensor_and_unknown_dtype_are_refused(family, tmp_path):
    with pytest.raises(CheckpointError, match=r"has no tensor 'nope'"):
        Checkpoint(family["base"]).tensor("nope")
    (tmp_path / "config.json").write_text("{}")
    header = json.dumps({"x": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0")
    with pytest.raises(CheckpointError, match="tensor 'x' is stored as F4; readable are"):
        Checkpoint(tmp_path)


def test_several_files_without_an_index_are_refused(broken):
    (broken / "model.safetensors.index.json").unlink()
    with pytest.raises(CheckpointError, match=r"2 safetensors files but no model\.safetensors\.index\.json"):
        Checkpoint(broken)
