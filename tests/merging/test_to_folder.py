"""The streaming engine: it goes on after a kill, refuses what is not finite, and keeps its memory flat."""

import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge.checkpoints import Checkpoint
from evomerge.errors import CheckpointError, ExportError
from evomerge.merging import Parents, merge_to_folder, to_folder
from evomerge.recipes import Recipe
from evomerge.testing.tiny_models import tiny_family


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    return tiny_family(tmp_path_factory.mktemp("family"), parents=2, dtype="bfloat16")


def recipe_for(paths, method="dare_ties", **fields):
    models = [{"model": str(paths[name]), "parameters": {"weight": 0.4, "density": 0.6}} for name in "ab"]
    return Recipe.model_validate(
        {"merge_method": method, "base_model": str(paths["base"]), "models": models, "seed": 3, **fields}
    )


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def merge(recipe, out, *, stop_after=None, stop=None, **options):
    """Merge; return the names of the tensors that were computed, in order."""
    computed = []
    real = to_folder.merge_tensors

    def counted(*arguments, **more):
        for name, tensor in real(*arguments, **more):
            if len(computed) == stop_after:
                stop()
            computed.append(name)
            yield name, tensor

    to_folder.merge_tensors = counted
    try:
        merge_to_folder(recipe, out, **options)
    finally:
        to_folder.merge_tensors = real
    return computed


def interrupted(recipe, out, number, **options):
    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge(recipe, out, stop_after=number, stop=stop, **options)


@pytest.mark.parametrize("size", ["5GB", "30KB"])
def test_a_killed_merge_goes_on_and_ends_in_the_same_bytes(family, tmp_path, size):
    recipe = recipe_for(family)
    names = merge(recipe, tmp_path / "straight", max_shard_size=size)
    child = os.fork()
    if child == 0:
        try:
            merge(recipe, tmp_path / "out", stop_after=7, stop=lambda: os.kill(os.getpid(), signal.SIGKILL))
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.partial", "straight"]
    again = merge(recipe, tmp_path / "out", max_shard_size=size)
    assert again == (names[7:] if size == "5GB" else names)  # another size of the shards is another merge
    assert contents(tmp_path / "out") == contents(tmp_path / "straight")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "straight"]


def test_another_recipe_or_other_parents_start_anew(family, tmp_path):
    paths = {name: shutil.copytree(path, tmp_path / name) for name, path in family.items()}
    recipe = recipe_for(paths)
    steps = len(Parents.open(recipe.parents()).plan(recipe))
    out = tmp_path / "out"

    def touch():
        file = paths["a"] / "model.safetensors"
        os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))

    for change in (lambda: recipe_for(paths, seed=4), touch):
        interrupted(recipe, out, 5)
        assert len(merge(change() or recipe, out)) == steps
        shutil.rmtree(out)
    interrupted(recipe, out, 5)
    assert len(merge(recipe, out)) == steps - 5


def test_an_interrupted_export_goes_on_too(family, tmp_path):
    from evomerge.export.card import describe
    from evomerge.export.folder import write_model

    recipe = recipe_for(family)
    interrupted(recipe, tmp_path / "out", 5)
    write_model(recipe, tmp_path / "out", card=describe(recipe, "mix"))
    assert (tmp_path / "out" / "README.md").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_second_process_is_refused_while_the_first_merges(family, tmp_path):
    recipe = recipe_for(family)

    def second():
        with pytest.raises(ExportError, match="another process is writing"):
            merge_to_folder(recipe, tmp_path / "out")

    merge(recipe, tmp_path / "out", stop_after=3, stop=second)
    assert (tmp_path / "out" / "config.json").is_file()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("method", ["ties", "slerp", "linear"])
def test_what_a_method_would_hide_is_refused_by_tensor_and_parent(family, tmp_path, method, value):
    """Trimming, a weight of zero or slerp's end would leave no trace of it in the merge."""
    bad = shutil.copytree(family["b"], tmp_path / "bad")
    tensors = load_file(bad / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name][3, 4] = value
    save_file(tensors, bad / "model.safetensors", metadata={"format": "pt"})
    models = [{"model": str(family["a"])}, {"model": str(bad)}]
    parameters = {"ties": {"density": 0.1, "weight": 0.0}, "slerp": {"t": 0.0}}.get(method, {"weight": 1.0})
    base = {"ties": {"base_model": str(family["base"])}, "slerp": {"base_model": str(family["a"])}}.get(method, {})
    recipe = Recipe.model_validate({"merge_method": method, "models": models, "parameters": parameters, **base})
    with pytest.raises(CheckpointError, match=rf"bad: tensor {name} holds NaN or Inf; use another copy"):
        merge_to_folder(recipe, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["bad"]


MEASURE = """
import sys
from evomerge.merging import Parents, merge_to_folder
from evomerge.recipes import Recipe
def peak():
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmHWM"))
def merge(*folders):
    models = [{"model": folder, "parameters": {"weight": 0.5}} for folder in folders[1:-1]]
    merge_to_folder(
        Recipe.model_validate({"merge_method": "task_arithmetic", "base_model": folders[0], "models": models}),
        folders[-1],
    )
merge(*sys.argv[1:5])
before = peak()
merge(*sys.argv[5:])
print(peak() - before)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads Linux's account of memory")
def test_memory_does_not_grow_with_the_model(tmp_path):
    """Mapped pages count as resident: 150 MB are read, and no more than a group of tensors may be held at once."""
    small = tiny_family(tmp_path / "small", parents=2, hidden=256, layers=1)
    large = tiny_family(tmp_path / "large", parents=2, hidden=256, layers=24)
    arguments = [*small.values(), tmp_path / "one", *large.values(), tmp_path / "two"]
    total = sum(Checkpoint(folder).num_bytes for folder in large.values())
    largest = max(info.stop - info.start for info in Checkpoint(large["a"]).tensors.values())
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, *map(str, arguments)], capture_output=True, text=True, check=True
    )
    grown = int(run.stdout)
    assert total > 130e6
    assert grown < 30e6, grown
    assert 5 * largest < 30e6
    assert torch.equal(
        Checkpoint(tmp_path / "two").tensor("model.norm.weight"),
        sum(Checkpoint(large[n]).tensor("model.norm.weight") for n in "ab") / 2,
    )
