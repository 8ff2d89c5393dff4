"""Our merges are mergekit's, tensor by tensor: stored results, and live ones if mergekit is there.

How far they may be apart, relative to the largest entry of the tensor, merged or of a parent: float32 sums in another
order differ by a few units of 2⁻²⁴. In half precision mergekit rounds every step of a sum of task vectors (bfloat16
to 2⁻⁹, float16 to 2⁻¹²), its weights and the cosines of angles; we round once. A weighted sum that nearly cancels
magnifies that, which is why the parents' size counts and not the result's alone.

Three results are ill-conditioned. Karcher means of fine-tuned models lie at angles of some hundredths, whose cosines
round to 1 in half precision, and mergekit then passes over that model; ours keeps it, and both lie between the models.
Arcs of `nuslerp` between nearly opposite vectors, or rows or columns (a few numbers may well be opposite), go wherever
the rounding of their angle sends them, and so does `model_stock` where its divisor 1 + (N−1) cos θ nearly vanishes;
such tensors are left out.

From a few methods mergekit returns float32 although the merge is in half precision (its masks are float32); they are
compared after rounding to ours.
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
from evomerge.merging import METHODS, Parents, check_recipe, merge_tensors
from evomerge.recipes import Recipe, write_recipe
from evomerge.testing.random_recipes import SHARED, random_recipe
from evomerge.testing.tiny_models import tiny_family

HERE = Path(__file__).parent
GOLDEN = HERE.parent / "golden" / "mergekit"
BOUNDS = {torch.float32: 2e-6, torch.float16: 5e-3, torch.bfloat16: 3e-2}
KARCHER = {torch.float32: 2e-6, torch.float16: 5e-2, torch.bfloat16: 5e-2}  # as far apart as the models
COARSENESS = list(BOUNDS)  # finest first
RANDOMISED = ("dare_linear", "dare_ties", "della_linear", "della")
FILTERS = {
    "gpt2": ("attn", "mlp", "ln_", "wte"),
    "bert": ("attention", "intermediate", "LayerNorm", "embeddings", "classifier"),
    "vit": (),  # mergekit finds no layers in its checkpoints: merged in memory, all tensors with the same numbers
    "": ("self_attn", "mlp", "norm", "embed", "lm_head", "q_proj"),
}
CLASSES = {"bert": "BertForSequenceClassification"}  # mergekit insists on the pooler, which the masked one lacks
LAYERS = 4
EACH = int(os.environ.get("EVOMERGE_MERGEKIT_EACH", "1"))  # live recipes for each method, architecture and dtype


def stored():
    with safe_open(GOLDEN / "results.safetensors", framework="pt") as opened:
        return json.loads(opened.metadata()["recipes"])


def distances(recipe, parents, theirs):
    """Return name → the largest difference between our merge and theirs, relative to the largest entry there is."""
    steps = {step.name: step for step in parents.plan(recipe)}
    ours = dict(merge_tensors(recipe, parents))
    assert ours.keys() == theirs.keys()
    found = {}
    for name, tensor in ours.items():
        if is_ill_conditioned(recipe, steps[name], parents):
            continue
        assert tensor.shape == theirs[name].shape
        assert theirs[name].dtype in (tensor.dtype, torch.float32)
        expected = theirs[name].to(tensor.dtype).double()
        others = [parents.tensor(model, key) for model, key in steps[name].inputs.items()]
        largest = max(float(each.abs().max()) for each in (expected, *others))
        found[name] = float((tensor.double() - expected).abs().max()) / max(largest, 1e-30)
    return found


def is_ill_conditioned(recipe, step, parents):
    """Return whether a tensor has lines whose angles decide nothing but rounding."""
    flags = recipe.parameters
    whole = flags.get("nuslerp_flatten", True) and not flags.get("filter_wise", False)
    if recipe.merge_method not in ("nuslerp", "model_stock"):
        return False
    tensors = {model: parents.tensor(model, name).double() for model, name in step.inputs.items()}
    base = tensors.pop(recipe.base_model) if recipe.base_model else 0
    moves = [(tensor - base).reshape(-1) if whole else tensor - base for tensor in tensors.values()]
    dimension = 0 if flags.get("nuslerp_row_wise") and not whole else -1
    pairs = [(first, second) for i, first in enumerate(moves) for second in moves[:i]]
    cosine = sum(torch.cosine_similarity(*pair, dim=dimension) for pair in pairs) / len(pairs)
    if recipe.merge_method == "nuslerp":
        return bool((cosine < -0.8).any())
    return bool((1 + (len(moves) - 1) * cosine < 0.5).any())


def bound(recipe, stored_in):
    """Return how far apart the merges may be: what the coarsest dtype on the way allows."""
    steps = [getattr(torch, d) for d in (recipe.dtype or stored_in, recipe.out_dtype) if d]
    coarsest = max(steps, key=COARSENESS.index)
    return (KARCHER if recipe.merge_method == "karcher" else BOUNDS)[coarsest]


def test_every_method_of_mergekit_is_compared():
    stored_methods = {recipe["merge_method"] for recipe in stored().values()}
    assert stored_methods == set(SHARED)
    assert {*SHARED, *RANDOMISED} <= set(METHODS)


@pytest.mark.parametrize("case", stored())
def test_stored_results_are_reproduced(case):
    recipe = Recipe.model_validate(stored()[case])
    parents = Parents({name: Checkpoint(GOLDEN / name, name) for name in ("base", "a", "b", "c")})
    assert check_recipe(recipe, parents) == []
    results = load_file(GOLDEN / "results.safetensors")
    theirs = {name.removeprefix(f"{case}/"): t for name, t in results.items() if name.startswith(f"{case}/")}
    apart = distances(recipe, parents, theirs)
    assert max(apart.values()) <= bound(recipe, "float32"), max(apart, key=apart.get)


@pytest.fixture(scope="module")
def mergekit(tmp_path_factory):
    """Return a function that merges recipes with mergekit and returns their tensors."""
    python = os.environ.get("EVOMERGE_MERGEKIT_PYTHON")
    if not python:
        pytest.skip("set EVOMERGE_MERGEKIT_PYTHON to the Python of an environment with mergekit")

    def merge(recipes, in_memory=False):
        work = tmp_path_factory.mktemp("mergekit")
        jobs = [
            {"recipe": write_recipe(r), "out": str(work / f"{i}"), "seed": i, "in_memory": in_memory}
            for i, r in enumerate(recipes)
        ]
        (work / "jobs.json").write_text(json.dumps(jobs))
        command = [python, str(HERE / "mergekit_merge.py"), str(work / "jobs.json")]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500)
        assert done.returncode == 0, done.stderr
        missing = [
            write_recipe(r) for i, r in enumerate(recipes) if not (work / f"{i}" / "model.safetensors").is_file()
        ]
        assert not missing, f"{missing[0]}\n{done.stderr}"
        return [load_file(work / f"{i}" / "model.safetensors") for i in range(len(recipes))]

    return merge


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen2", "gpt2", "bert", "vit"])
def test_random_recipes_are_merged_alike(mergekit, tmp_path, architecture):
    draw = random.Random(f"{architecture} {os.environ.get('EVOMERGE_MERGEKIT_SEED', 0)}")
    filters = FILTERS.get(architecture, FILTERS[""])
    recipes = []
    for dtype in ("float32", "bfloat16", "float16"):
        paths = tiny_family(
            tmp_path / dtype,
            architecture,
            seed=len(recipes),
            dtype=dtype,
            layers=LAYERS,
            model_class=CLASSES.get(architecture),
        )
        for method in [name for name in SHARED if filters or name != "passthrough"]:
            recipes += [random_recipe(method, paths, LAYERS, draw, filters) for _ in range(EACH)]
    for recipe, theirs in zip(recipes, mergekit(recipes, in_memory=not filters), strict=True):
        parents = Parents.open(recipe.parents())
        assert check_recipe(recipe, parents) == []
        apart = distances(recipe, parents, theirs)
        stored_in = parents.checkpoints[recipe.parents()[0]].config["dtype"]
        assert max(apart.values()) <= bound(recipe, stored_in), f"{max(apart, key=apart.get)}\n{write_recipe(recipe)}"


@pytest.mark.slow
@pytest.mark.parametrize("method", RANDOMISED)
@pytest.mark.parametrize("density", [0.2, 0.7])
def test_draws_are_from_the_same_distribution(mergekit, tmp_path, method, density):
    """Masks cannot be equal; the share kept, by rank in the row, the factor on what is kept, and the mean are."""
    paths = tiny_family(tmp_path, parents=1, hidden=64, distance=0.05)
    parameters = {"density": density, **({"epsilon": 0.15} if method.startswith("della") else {})}
    fields = {"merge_method": method, "base_model": str(paths["base"]), "parameters": parameters}
    models = [{"model": str(paths["a"]), "parameters": {"weight": 1.0}}]
    recipes = [Recipe.model_validate({**fields, "models": models, "seed": seed}) for seed in range(6)]
    parents = Parents.open([str(path) for path in paths.values()])
    name = "model.layers.0.mlp.up_proj.weight"
    base, parent = (parents.tensor(str(paths[key]), name) for key in ("base", "a"))
    theirs = torch.stack([merged[name] - base for merged in mergekit(recipes)])
    ours = torch.stack([dict(merge_tensors(recipe, parents))[name] - base for recipe in recipes])
    summaries = [summary(deltas, parent - base) for deltas in (ours, theirs)]
    assert summaries[0] == pytest.approx(summaries[1], rel=0.06, abs=0.02)
    if not method.startswith("della"):
        assert summaries[0][:3] == pytest.approx((density, 1 / density, 1.0), rel=0.05)


def summary(deltas, vector):
    """Return what describes the draws.

    The share of entries kept, the factor on them, the mean's slope against the task vector, and the share kept in
    each quarter of the rows, by rank of magnitude.
    """
    kept = deltas != 0
    factor = (deltas[kept] / vector.expand_as(deltas)[kept]).median()
    slope = (deltas.mean(0) * vector).sum() / (vector * vector).sum()
    ranks = vector.abs().argsort(dim=1).argsort(dim=1) * 4 // vector.shape[1]
    shares = [float(kept[:, ranks == quarter].float().mean()) for quarter in range(4)]
    return (float(kept.float().mean()), float(factor), float(slope), *shares)
