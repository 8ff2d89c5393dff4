"""Merging on a GPU gives what merging on the CPU gives; parents stay there as far as they fit."""

import pytest
import torch

from evomerge.checkpoints import Checkpoint, CheckpointView
from evomerge.merging import METHODS, InPlaceMerger, Parents
from evomerge.merging.device import OnDevice
from evomerge.recipes import Recipe
from evomerge.testing.tiny_models import tiny_family

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
# Sums run in another order on a GPU; one rounding to the dtype may then fall to the other side.
BOUNDS = {"float32": 1e-5, "bfloat16": 2e-2, "float16": 2e-3}


@pytest.fixture(scope="module", params=BOUNDS)
def family(request, tmp_path_factory):
    return request.param, tiny_family(tmp_path_factory.mktemp("models"), dtype=request.param, hidden=64)


def recipe_for(method, paths):
    most = METHODS[method].max_models
    names = ["a", "b", "c"] if most is None else ["a", "b", "c"][: max(1, most - METHODS[method].needs_base)]
    required = {p.name: p.default for p in METHODS[method].parameters if p.required}
    return Recipe.model_validate(
        {
            "merge_method": method,
            "base_model": str(paths["base"]) if METHODS[method].needs_base else None,
            "models": [{"model": str(paths[name])} for name in names],
            "parameters": required,
        }
    )


@CUDA
@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if not method.statistics])
def test_every_method_merges_alike_on_both_devices(family, method):
    dtype, paths = family
    recipe = recipe_for(method, paths)
    models = []
    for device in ("cpu", "cuda"):
        merger = InPlaceMerger(Parents.open([str(p) for p in paths.values()]), base=str(paths["base"]), device=device)
        merger.merge(recipe)
        models.append({name: tensor.double().cpu() for name, tensor in merger.model.state_dict().items()})
    for name, tensor in models[0].items():
        assert (tensor - models[1][name]).abs().max() <= BOUNDS[dtype] * tensor.abs().max(), name


@CUDA
@pytest.mark.parametrize("max_bytes", [0, 20_000, 1 << 30])
def test_parents_that_do_not_fit_are_streamed(family, max_bytes):
    _, paths = family
    parents = Parents.open([str(paths["a"])])
    handed = OnDevice(torch.device("cuda"), max_bytes)
    for _ in range(2):
        for name in parents[str(paths["a"])].tensors:
            tensor = handed.tensor(parents, str(paths["a"]), name)
            assert torch.equal(tensor.cpu(), parents.tensor(str(paths["a"]), name))


def test_what_a_view_makes_is_made_once_as_far_as_it_fits(family):
    class Doubled(CheckpointView):
        made = 0

        def tensor(self, name):
            Doubled.made += 1
            return super().tensor(name) * 2

    _, paths = family
    parents = Parents({"twice": Doubled(Checkpoint(paths["a"]))})
    names = list(parents["twice"].tensors)
    roomy, tight = OnDevice(torch.device("cpu")), OnDevice(torch.device("cpu"), max_bytes=0)
    for handed, expected in ((roomy, len(names)), (tight, 2 * len(names))):
        Doubled.made = 0
        for _ in range(2):
            for name in names:
                assert torch.equal(handed.tensor(parents, "twice", name), parents["twice"].source.tensor(name) * 2)
        assert Doubled.made == expected


def test_on_the_cpu_parents_are_views_of_their_files(family):
    _, paths = family
    parents = Parents.open([str(paths["a"])])
    name = next(iter(parents[str(paths["a"])].tensors))
    handed = OnDevice(torch.device("cpu")).tensor(parents, str(paths["a"]), name)
    assert handed.data_ptr() == parents.tensor(str(paths["a"]), name).data_ptr()
