"""Writing models: shards, index and metadata as libraries expect, and nothing that only looks complete."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from evomerge.checkpoints import CheckpointWriter, TensorSpec, parse_size
from evomerge.checkpoints import writer as writer_module
from evomerge.errors import ConfigError, ExportError

TENSORS = {
    "embed": torch.randn(10, 4),
    "layers.0.weight": torch.randn(4, 4, dtype=torch.bfloat16),
    "layers.0.mask": torch.tensor([True, False, True]),
    "norm": torch.randn(4),
    "scalar": torch.tensor(2, dtype=torch.int64),
}
SPECS = [TensorSpec(name, tuple(tensor.shape), tensor.dtype) for name, tensor in TENSORS.items()]


def write(out, size="5GB", order=tuple(TENSORS)):
    with CheckpointWriter(out, SPECS, size) as writer:
        for name in order:
            writer.write(name, TENSORS[name])


def read(file):
    with safe_open(file, framework="pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata()  # noqa: SIM118


@pytest.mark.parametrize("order", [tuple(TENSORS), tuple(reversed(TENSORS))], ids=["forwards", "backwards"])
def test_single_file_is_read_by_safetensors(tmp_path, order):
    write(tmp_path / "out", order=order)
    tensors, metadata = read(tmp_path / "out" / "model.safetensors")
    assert metadata == {"format": "pt"}
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["model.safetensors"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


def test_shards_have_an_index_with_the_total_size(tmp_path):
    write(tmp_path / "out", "100")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in TENSORS.values())
    assert index["weight_map"]["embed"] == "model-00001-of-00002.safetensors"
    for name, file in index["weight_map"].items():
        tensors, _ = read(tmp_path / "out" / file)
        assert torch.equal(tensors[name], TENSORS[name])


@given(st.integers(1, 400))
def test_no_shard_is_larger_than_asked_unless_it_holds_one_tensor(limit):
    shards = writer_module._shards(SPECS, limit)
    assert [spec for shard in shards for spec in shard] == SPECS
    assert all(len(shard) == 1 or sum(spec.num_bytes for spec in shard) <= limit for shard in shards)


@pytest.mark.parametrize(("text", "size"), [("5GB", 5 * 10**9), ("1.5 MiB", 3 * 2**19), ("200", 200), (7, 7)])
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "five", "5TB", "-1", "0"])
def test_sizes_that_are_none(text):
    with pytest.raises(ConfigError, match="is no size; write it as 5GB"):
        parse_size(text)


def test_folder_that_is_not_empty_is_refused_and_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("keep")
    with pytest.raises(ExportError, match="exists and is not empty; name another folder"):
        write(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "keep"
    with pytest.raises(ExportError, match="is a file"):
        write(tmp_path / "notes.txt")


def test_empty_folder_is_taken(tmp_path):
    (tmp_path / "out").mkdir()
    write(tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_folder_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    def refuse(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)  # root may write anywhere, so real rights would not do
    with pytest.raises(ExportError, match=r"(cannot write into|cannot be created).*choose another place"):
        write(tmp_path / "out")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write into read-only folders")
def test_read_only_folder_is_refused(tmp_path):
    tmp_path.chmod(0o555)
    with pytest.raises(ExportError, match="it is read-only"):
        write(tmp_path / "out")
    tmp_path.chmod(0o755)


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a file system that not even root may write to")
def test_place_where_nobody_may_write_is_refused():
    with pytest.raises(ExportError, match=r"cannot write into /proc: .*choose another place"):
        write(Path("/proc/evomerge-out"))


def test_too_small_disk_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(100, 90, 10))
    with pytest.raises(ExportError, match=r"the model needs 0\.00 GB, the disk of .* has 0\.00 GB free"):
        write(tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_an_error_leaves_nothing(tmp_path):
    def fail_half_way():
        with CheckpointWriter(tmp_path / "out", SPECS) as writer:
            writer.write("embed", TENSORS["embed"])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail_half_way()
    assert not list(tmp_path.iterdir())


def test_forgotten_and_unannounced_tensors_are_refused(tmp_path):
    with pytest.raises(ExportError, match="1 tensors were never written: scalar"):
        write(tmp_path / "out", order=tuple(TENSORS)[:-1])
    with (
        pytest.raises(ExportError, match="was announced as"),
        CheckpointWriter(tmp_path / "out", SPECS) as writer,
    ):
        writer.write("norm", TENSORS["embed"])
    assert not list(tmp_path.iterdir())


def test_a_killed_process_leaves_no_complete_folder_and_the_next_one_cleans_up(tmp_path):
    code = f"""
import os, signal, torch
from evomerge.checkpoints import CheckpointWriter, TensorSpec
with CheckpointWriter({str(tmp_path / "out")!r}, [TensorSpec("x", (2,), torch.float32)]) as writer:
    writer.write("x", torch.ones(2))
    os.kill(os.getpid(), signal.SIGKILL)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert run.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    assert [p.name.startswith(".out.partial-") for p in tmp_path.iterdir()] == [True]
    write(tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
