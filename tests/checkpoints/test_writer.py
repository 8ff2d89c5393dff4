"""Writing models: shards, index and metadata as libraries expect, and nothing that only looks complete."""

import json
import os
import shutil
import signal
import sys
import tempfile
from collections import namedtuple
from itertools import count
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open

from evomerge.checkpoints import CheckpointWriter, TensorSpec, parse_size
from evomerge.checkpoints import progress as progress_module
from evomerge.checkpoints import writer as writer_module
from evomerge.errors import ConfigError, EvomergeError, ExportError, MergeError

RANDOM = torch.Generator().manual_seed(0)  # the same in processes that import this
TENSORS = {
    "embed": torch.randn(10, 4, generator=RANDOM),
    "layers.0.weight": torch.randn(4, 4, dtype=torch.bfloat16, generator=RANDOM),
    "layers.0.mask": torch.tensor([True, False, True]),
    "norm": torch.randn(4, generator=RANDOM),
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
    shards = writer_module._split(SPECS, limit)
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
    with pytest.raises(ExportError, match=r"the model needs 0\.00 GB; the disk of .* has 0\.00 GB free; free some"):
        write(tmp_path / "out")
    assert not list(tmp_path.iterdir())


def fail_half_way(out, error, identity, names=("embed",)):
    with CheckpointWriter(out, SPECS, "100", identity=identity) as writer:
        for name in names:
            writer.write(name, TENSORS[name])
        raise error


@pytest.mark.parametrize("identity", [None, "this merge"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError(), OSError(28, "full"), MergeError("no")])
def test_what_would_only_fail_again_leaves_nothing_and_what_may_go_on_is_kept(tmp_path, identity, error):
    with pytest.raises(type(error)):
        fail_half_way(tmp_path / "out", error, identity)
    kept = identity is not None and not isinstance(error, EvomergeError)
    assert [path.name for path in tmp_path.iterdir()] == ([".out.partial"] if kept else [])


def go_on(out, identity="this merge", size="100"):
    """Write what is left; return the names that were done already."""
    with CheckpointWriter(out, SPECS, size, identity=identity) as writer:
        for name, tensor in TENSORS.items():
            if name not in writer.done:
                writer.write(name, tensor)
    return writer.done


def contents(out):
    return {path.name: path.read_bytes() for path in out.iterdir()}


@given(st.permutations(list(TENSORS)), st.integers(0, len(TENSORS)))
@settings(max_examples=20)
def test_the_same_merge_goes_on_from_any_point_in_any_order(order, number):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        with pytest.raises(KeyboardInterrupt):
            fail_half_way(root / "out", KeyboardInterrupt(), "this merge", order[:number])
        assert go_on(root / "out") == set(order[:number])
        go_on(root / "straight")
        assert contents(root / "out") == contents(root / "straight")
        assert sorted(path.name for path in root.iterdir()) == ["out", "straight"]


def test_another_merge_starts_anew(tmp_path):
    for identity, size in (("another", "100"), ("this merge", "5GB")):
        with pytest.raises(KeyboardInterrupt):
            fail_half_way(tmp_path / "out", KeyboardInterrupt(), "this merge")
        assert go_on(tmp_path / "out", identity, size) == set()
        shutil.rmtree(tmp_path / "out")


def kill(out, *names, after=None):
    """Write these tensors in a process of its own, killed at the end, or after so many lines of the writer's code."""
    child = os.fork()
    if child == 0:
        try:
            if after is not None:
                sys.settrace(countdown(after))
            with CheckpointWriter(out, SPECS, "100", identity="this merge") as writer:
                for name in names:
                    writer.write(name, TENSORS[name])
                if after is None:
                    os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os.kill(os.getpid(), signal.SIGTERM if after is not None else signal.SIGKILL)
    return os.WTERMSIG(os.waitpid(child, 0)[1])


def countdown(lines):
    """Return a trace function that kills the process when it has seen so many lines of the writer."""
    left = [lines]
    files = (writer_module.__file__, progress_module.__file__)

    def trace(frame, event, argument):
        if frame.f_code.co_filename not in files:
            return None
        left[0] -= event == "line"
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    return trace


def test_what_a_killed_process_wrote_is_kept_and_cannot_be_taken_for_a_model(tmp_path):
    kill(tmp_path / "out", "embed", "norm")
    assert [path.name for path in tmp_path.iterdir()] == [".out.partial"]
    for shard in (tmp_path / ".out.partial" / "model").glob("*"):
        with pytest.raises(SafetensorError), safe_open(shard, framework="pt"):
            pass
    assert not (tmp_path / ".out.partial" / "model" / "config.json").exists()
    assert go_on(tmp_path / "out") == {"embed", "norm"}
    go_on(tmp_path / "straight")
    assert contents(tmp_path / "out") == contents(tmp_path / "straight")


def test_a_kill_at_any_instant_loses_nothing_and_shows_nothing(tmp_path):
    """Killed at every few lines of the writer's code, it always goes on to the bytes of a straight writer."""
    go_on(tmp_path / "straight")
    straight = contents(tmp_path / "straight")
    done = []
    for after in count(0, 9):
        out = tmp_path / "out"
        signal_number = kill(out, *TENSORS, after=after)
        if out.exists():
            assert contents(out) == straight
            with pytest.raises(ExportError, match="exists and is not empty"):
                go_on(out)
        else:
            done.append(len(go_on(out)))
            assert contents(out) == straight
        assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "straight"]
        shutil.rmtree(out)
        if signal_number == signal.SIGTERM:  # it came to its end before the countdown did
            break
    assert done == sorted(done)
    assert set(done) == set(range(len(TENSORS) + 1))


@pytest.mark.parametrize("cut", [1, 5])
def test_a_torn_line_of_the_record_counts_for_nothing(tmp_path, cut):
    kill(tmp_path / "out", "embed", "norm")
    record = tmp_path / ".out.partial" / "record"
    record.write_bytes(record.read_bytes()[:-cut])
    assert go_on(tmp_path / "out") == {"embed"}


def test_after_a_crash_of_the_machine_only_what_the_disk_held_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(writer_module, "SYNC_BYTES", 160)  # embed has 160 bytes
    monkeypatch.setattr(progress_module, "_boot", lambda: "before")
    with pytest.raises(KeyboardInterrupt):
        fail_half_way(tmp_path / "out", KeyboardInterrupt(), "this merge", ("embed", "norm"))
    monkeypatch.setattr(progress_module, "_boot", lambda: "after")
    assert go_on(tmp_path / "out") == {"embed"}


def test_a_shard_that_was_tampered_with_is_written_again(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fail_half_way(tmp_path / "out", KeyboardInterrupt(), "this merge", ("embed", "norm"))
    (tmp_path / ".out.partial" / "model" / "model-00001-of-00002.safetensors").unlink()
    assert go_on(tmp_path / "out") == {"norm"}


def test_two_processes_with_one_destination_do_not_mix(tmp_path):
    with CheckpointWriter(tmp_path / "out", SPECS, identity="this merge") as first:
        for name, tensor in TENSORS.items():
            first.write(name, tensor)
        with pytest.raises(ExportError, match=r"another process is writing .*out; wait for it"):
            go_on(tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_a_full_disk_keeps_what_is_done_and_says_how_to_go_on(tmp_path, monkeypatch):
    pwrite, left = os.pwrite, [2]

    def full(descriptor, data, position):
        left[0] -= 1
        if left[0] == 0:
            raise OSError(28, "No space left on device")
        return pwrite(descriptor, data, position)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(
        ExportError, match=r"No space left on device; what is written stays in .*the same command goes on"
    ):
        go_on(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert go_on(tmp_path / "out") == {"embed"}


def test_what_lies_there_already_counts_as_free_space(tmp_path, monkeypatch):
    big = [TensorSpec(name, (1 << 20,), torch.uint8) for name in "ab"]
    writer = CheckpointWriter(tmp_path / "out", big, identity="x")
    writer.write("a", torch.ones(1 << 20, dtype=torch.uint8))
    writer._sync()
    writer.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, (1 << 20) + 8192))
    with CheckpointWriter(tmp_path / "out", big, identity="x") as writer:
        writer.write("b", torch.ones(1 << 20, dtype=torch.uint8))
    with pytest.raises(ExportError, match="the model needs"), CheckpointWriter(tmp_path / "new", big, identity="x"):
        pass


def test_a_folder_is_replaced_in_one_step_or_stays(tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("old")

    def replace_it():
        with CheckpointWriter(out, SPECS, identity="this merge", replace=True) as writer:
            for name in TENSORS.keys() - writer.done:
                writer.write(name, TENSORS[name])

    real = os.replace

    def fail(source, target):
        if Path(source).name == "model":
            raise OSError(5, "Input/output error")
        real(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(ExportError, match="Input/output error"):
        replace_it()
    assert contents(out) == {"old": b"old"}
    monkeypatch.setattr(os, "replace", real)
    replace_it()
    assert contents(out).keys() == {"model.safetensors"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_former_folder_comes_back_after_a_kill_between_the_two_renames(tmp_path):
    kill(tmp_path / "out", "embed")
    (tmp_path / ".out.partial" / "replaced").mkdir()
    (tmp_path / ".out.partial" / "replaced" / "old").write_text("old")
    with pytest.raises(ExportError, match="exists and is not empty"):
        go_on(tmp_path / "out")
    assert contents(tmp_path / "out") == {"old": b"old"}


def test_forgotten_and_unannounced_tensors_are_refused(tmp_path):
    with pytest.raises(ExportError, match="1 tensors were never written: scalar"):
        write(tmp_path / "out", order=tuple(TENSORS)[:-1])
    with (
        pytest.raises(ExportError, match="was announced as"),
        CheckpointWriter(tmp_path / "out", SPECS) as writer,
    ):
        writer.write("norm", TENSORS["embed"])
    assert not list(tmp_path.iterdir())
