"""Our merges are mergekit's, tensor by tensor: stored results, and live ones if mergekit is there.

How far they may be apart, relative to the largest entry of the tensor: float32 sums in another order differ by
a few units of 2⁻²⁴. In half precision mergekit rounds every step of a sum of task vectors (bfloat16 to 2⁻⁹,
float16 to 2⁻¹²), and its weights; we round once. A weighted sum that nearly cancels magnifies that.
"""

import json
import os
import random
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from evomerge.checkpoints import Checkpoint
from evomerge.merging import Parents, check_recipe, merge_tensors
from evomerge.recipes import Recipe, write_recipe
from evomerge.testing.random_recipes import random_recipe
from evomerge.testing.tiny_models import tiny_family

HERE = Path(__file__).parent
GOLDEN = HERE.parent / "golden" / "mergekit"
BOUNDS = {torch.float32: 1e-6, torch.float16: 5e-3, torch.bfloat16: 3e-2}
COARSENESS = list(BOUNDS)  # finest first
FILTERS = {
    "gpt2": ("attn", "mlp", "ln_", "wte"),
    "": ("self_attn", "mlp", "norm", "embed", "lm_head", "q_proj"),
}
LAYERS = 4
EACH = 3  # live recipes for each method, architecture and dtype


def stored():
    with safe_open(GOLDEN / "results.safetensors", framework="pt") as opened:
        return json.loads(opened.metadata()["recipes"])


def distance(ours, theirs):
    """Return the largest difference, relative to the largest entry."""
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype
    return float((ours.double() - theirs.double()).abs().max() / theirs.double().abs().max().clamp_min(1e-30))


@pytest.mark.parametrize("case", stored())
def test_stored_results_are_reproduced(case):
    recipe = Recipe.model_validate(stored()[case])
    parents = Parents({name: Checkpoint(GOLDEN / name, name) for name in ("base", "a", "b", "c")})
    assert check_recipe(recipe, parents) == []
    results = load_file(GOLDEN / "results.safetensors")
    theirs = {name.removeprefix(f"{case}/"): t for name, t in results.items() if name.startswith(f"{case}/")}
    ours = dict(merge_tensors(recipe, parents))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert distance(tensor, theirs[name]) <= BOUNDS[tensor.dtype], name


@pytest.fixture(scope="module")
def mergekit(tmp_path_factory):
    """Return a function that merges recipes with mergekit and returns their tensors."""
    python = os.environ.get("EVOMERGE_MERGEKIT_PYTHON")
    if not python:
        pytest.skip("set EVOMERGE_MERGEKIT_PYTHON to the Python of an environment with mergekit")

    def merge(recipes):
        work = tmp_path_factory.mktemp("mergekit")
        jobs = [{"recipe": write_recipe(r), "out": str(work / f"{i}"), "seed": i} for i, r in enumerate(recipes)]
        (work / "jobs.json").write_text(json.dumps(jobs))
        command = [python, str(HERE / "mergekit_merge.py"), str(work / "jobs.json")]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500)
        assert done.returncode == 0, done.stderr
        return [load_file(work / f"{i}" / "model.safetensors") for i in range(len(recipes))]

    return merge


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen2", "gpt2"])
def test_random_recipes_are_merged_alike(mergekit, tmp_path, architecture):
    draw = random.Random(f"{architecture} {os.environ.get('EVOMERGE_MERGEKIT_SEED', 0)}")
    recipes = []
    for dtype in ("float32", "bfloat16", "float16"):
        paths = tiny_family(tmp_path / dtype, architecture, seed=len(recipes), dtype=dtype, layers=LAYERS)
        for method in ("linear", "slerp", "task_arithmetic", "ties", "passthrough"):
            filters = FILTERS.get(architecture, FILTERS[""])
            recipes += [random_recipe(method, paths, LAYERS, draw, filters) for _ in range(EACH)]
    for recipe, theirs in zip(recipes, mergekit(recipes), strict=True):
        parents = Parents.open(recipe.parents())
        assert check_recipe(recipe, parents) == []
        ours = dict(merge_tensors(recipe, parents))
        assert ours.keys() == theirs.keys()
        stored_in = parents.checkpoints[recipe.parents()[0]].config["dtype"]
        steps = [getattr(torch, d) for d in (recipe.dtype or stored_in, recipe.out_dtype) if d]
        bound = BOUNDS[max(steps, key=COARSENESS.index)]
        for name, tensor in ours.items():
            assert distance(tensor, theirs[name]) <= bound, f"{name}\n{write_recipe(recipe)}"


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
@pytest.mark.parametrize("density", [0.2, 0.7])
def test_dare_draws_from_the_same_distribution(mergekit, tmp_path, method, density):
    """Masks cannot be equal; the share kept, the factor on what is kept, and the mean are compared."""
    paths = tiny_family(tmp_path, parents=1, hidden=64, distance=0.05)
    fields = {"merge_method": method, "base_model": str(paths["base"]), "parameters": {"density": density}}
    models = [{"model": str(paths["a"]), "parameters": {"weight": 1.0}}]
    recipes = [Recipe.model_validate({**fields, "models": models, "seed": seed}) for seed in range(6)]
    parents = Parents.open([str(path) for path in paths.values()])
    name = "model.layers.0.mlp.up_proj.weight"
    base, parent = (parents.tensor(str(paths[key]), name) for key in ("base", "a"))
    theirs = torch.stack([merged[name] - base for merged in mergekit(recipes)])
    ours = torch.stack([dict(merge_tensors(recipe, parents))[name] - base for recipe in recipes])
    summaries = [summary(deltas, parent - base) for deltas in (ours, theirs)]
    assert summaries[0] == pytest.approx(summaries[1], rel=0.05)
    assert summaries[0] == pytest.approx((density, 1 / density, 1.0), rel=0.05)


def summary(deltas, vector):
    """Return the share of entries kept, the factor on them, and the mean's slope against the task vector."""
    kept = deltas != 0
    factor = (deltas[kept] / vector.expand_as(deltas)[kept]).median()
    slope = (deltas.mean(0) * vector).sum() / (vector * vector).sum()
    return float(kept.float().mean()), float(factor), float(slope)
