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

from evomerge.checkpoints import Checkpoint, CheckpointWriter, TensorSpec, layer_of
from evomerge.checkpoints.headers import DTYPES
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
    with pytest.raises(CheckpointError, match=r"no \*\.safetensors file"):
        Checkpoint(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"config\.json is missing; a language model's folder has one"):
        Checkpoint(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"config\.json is missing; a LoRA adapter; name it as BASE\+"):
        Checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"a LoRA adapter, not a whole model; name it as BASE\+"):
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


def header_only(folder, entries, size):
    """Write a safetensors file with this header (a dict, or its text) and so many bytes of data."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    header = (entries if isinstance(entries, str) else json.dumps(entries)).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(size))
    return folder


def entry(start, stop, shape=(4,), dtype="U8"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"a": entry(0, 4), "b": entry(2, 6)}, "tensors 'a' and 'b' overlap"),
        ({"a": entry(0, 4), "b": entry(0, 4)}, "tensors '(a|b)' and '(a|b)' overlap"),
        ({"a": entry(-4, 0)}, "tensor 'a' has an impossible shape or offset"),
        ({"a": entry(0, 4, (-2, -2))}, "tensor 'a' has an impossible shape or offset"),
        ({"a": entry(0, 4, (4.0,))}, "tensor 'a' has an impossible shape or offset"),
        ({"a": entry(0, 3)}, "tensor 'a' has 3 bytes, expected 4"),
        ({"a": entry(4, 0)}, "tensor 'a' has -4 bytes, expected 4"),
        ({"a": entry(0, 1 << 62, (1 << 62,))}, "truncated: its header speaks of"),
        ({"a": {"dtype": "U8"}}, "the header's entry of tensor 'a' is damaged"),
        ({"a": [1]}, "the header's entry of tensor 'a' is damaged"),
        ([1, 2], r"its safetensors header is damaged \(a list\)"),
        ('{"a": {}, "a": {}}', "a key is given twice"),
    ],
)
def test_headers_that_lie_are_refused(tmp_path, entries, message):
    with pytest.raises(CheckpointError, match=rf"model\.safetensors: .*{message}"):
        Checkpoint(header_only(tmp_path / "model", entries, 8))


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_every_dtype_of_the_format_is_read_and_written(tmp_path, dtype):
    data = torch.arange(1, 49, dtype=torch.uint8)[: dtype.itemsize * 3]
    tensor = (data % 2 if dtype == torch.bool else data).view(dtype)
    with CheckpointWriter(tmp_path / "out", [TensorSpec("x", (3,), dtype)]) as writer:
        writer.write("x", tensor)
    (tmp_path / "out" / "config.json").write_text("{}")
    checkpoint = Checkpoint(tmp_path / "out")
    assert torch.equal(checkpoint.tensor("x").view(torch.uint8), tensor.view(torch.uint8))
    assert checkpoint.check_finite() == []
    if dtype != torch.float8_e8m0fnu:  # the library's own table lacks it
        stored = load_file(tmp_path / "out" / "model.safetensors")["x"]
        assert stored.dtype == dtype
        assert torch.equal(stored.view(torch.uint8), tensor.view(torch.uint8))


@pytest.mark.parametrize("file", ["model-00001-of-00002.safetensors", "tokenizer.json", "config.json"])
def test_a_link_out_of_the_folder_is_refused(broken, tmp_path, file):
    (broken / file).rename(tmp_path / "elsewhere")
    (broken / file).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=rf"{file}: a link out of its folder, to .*elsewhere"):
        Checkpoint(broken)
    (broken / file).unlink()
    (tmp_path / "elsewhere").rename(broken / "inside")
    (broken / file).symlink_to("inside")
    Checkpoint(broken)


def test_the_hubs_cache_may_link_to_its_blobs_but_nowhere_else(broken, tmp_path):
    repository = tmp_path / "models--owner--name"
    snapshot = repository / "snapshots" / "abc"
    (repository / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for file in broken.iterdir():
        file.rename(repository / "blobs" / file.name)
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
    assert Checkpoint(snapshot).num_layers == 3
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "config.json").write_text("{}")
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to("../../../blobs/config.json")
    with pytest.raises(CheckpointError, match=r"config\.json: a link out of its folder"):
        Checkpoint(snapshot)


def test_a_folder_that_is_a_link_itself_is_fine(sharded, tmp_path):
    (tmp_path / "link").symlink_to(sharded)
    assert Checkpoint(tmp_path / "link").num_layers == 3


@pytest.fixture
def pickled(family, tmp_path):
    """A model with pickled weights only, and its tensors."""
    folder = shutil.copytree(family["base"], tmp_path / "pickled")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    return folder, tensors


@pytest.mark.parametrize("kind", ["mapped", "old format", "sharded"])
def test_allowed_pickles_are_read(pickled, kind):
    folder, tensors = pickled
    if kind == "old format":
        torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    if kind == "sharded":
        names = sorted(tensors)
        where = {name: f"pytorch_model-0000{1 + (name > names[5])}-of-00002.bin" for name in names}
        for file in set(where.values()):
            torch.save({name: tensors[name] for name in names if where[name] == file}, folder / file)
        (folder / "pytorch_model.bin").unlink()
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": where}))
    with pytest.raises(CheckpointError, match=r"only pickled weights .*--allow-pickle MODEL"):
        Checkpoint(folder)
    checkpoint = Checkpoint(folder, allow_pickle=True)
    for _ in range(2):
        assert checkpoint.tensors.keys() == tensors.keys()
        assert all(torch.equal(checkpoint.tensor(name), tensor) for name, tensor in tensors.items())
        checkpoint.release()
    assert checkpoint.num_bytes == sum(tensor.nbytes for tensor in tensors.values())
    assert len(checkpoint.fingerprint) == 16


class Evil:
    def __reduce__(self):
        return (print, ("code ran",))


@pytest.mark.parametrize("content", [{"x": Evil()}, Evil(), {"x": 3}, [torch.ones(1)]], ids=["in", "is", "int", "list"])
def test_a_pickle_that_holds_more_than_tensors_is_refused_and_does_nothing(pickled, content, capsys):
    folder, _ = pickled
    torch.save(content, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: (cannot be unpickled|holds more than named)"):
        Checkpoint(folder, allow_pickle=True)
    assert "code ran" not in capsys.readouterr().out


def test_safetensors_are_preferred_to_pickles(pickled, family):
    folder, _ = pickled
    (folder / "pytorch_model.bin").write_bytes(b"no pickle")
    shutil.copy(family["base"] / "model.safetensors", folder)
    assert Checkpoint(folder, allow_pickle=True).num_layers == 2


def test_released_pages_do_not_count_as_memory(tmp_path):
    size = 64 << 20
    checkpoint = model_of(tmp_path / "big", {name: torch.zeros(size, dtype=torch.uint8) for name in "abc"})
    code = f"""
import torch
from evomerge.checkpoints import Checkpoint
def resident():
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmRSS"))
checkpoint = Checkpoint({str(checkpoint.folder)!r})
checkpoint.tensor("a").sum()
before = resident()
kept = checkpoint.tensor("b")
assert kept.sum() == 0
assert resident() - before > {size // 2}
checkpoint.release()
assert kept.sum() == 0, "what is handed out stays valid"
del kept
checkpoint.tensor("c").sum()
checkpoint.release()
assert resident() - before < {size // 2}
"""
    run = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
