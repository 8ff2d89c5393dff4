"""Write population_searchers.json: what programs that we did not write make of the same numbers.

    python tests/references/population_searchers.py NATURAL_NICHES CYCLEQD

The arguments are checkouts of github.com/SakanaAI/natural_niches and github.com/SakanaAI/CycleQD; jax, optax and ribs
must be installed. Their functions are called as they are, with what they draw written down: jax counts in float64, and
vllm, which CycleQD's tasks import, and CUDA are stood in for.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
import torch

HERE = Path(__file__).parent
jax.config.update("jax_enable_x64", True)


def natural_niches(folder: Path) -> dict[str, Any]:
    """Return draws of parents, updates of an archive, and children, by the authors' code."""
    sys.path.insert(0, str(folder))
    sys.modules["data"] = ModuleType("data")
    sys.modules["data"].load_data = None  # type: ignore[attr-defined]
    niches, helper = (importlib.import_module(name) for name in ("natural_niches_fn", "helper_fn"))
    generator = np.random.default_rng(0)
    return {
        "parents": [parents(niches, generator, alpha, binary) for alpha in (0.0, 0.5, 1.0) for binary in (False, True)],
        "archives": [
            archives(niches, generator, alpha, binary) for alpha in (0.0, 0.5, 1.0) for binary in (False, True)
        ],
        "children": [child(helper, generator, *numbers) for numbers in ((0.2, 7), (0.7, 0), (0.9, 23), (0.35, 24))],
    }


def scores_of(generator: np.random.Generator, members: int, binary: bool) -> np.ndarray:
    drawn = generator.random((members, 9))
    drawn[:, 0] = 0  # what nobody solves
    return (drawn > 0.6).astype(float) if binary else drawn


def parents(niches: Any, generator: np.random.Generator, alpha: float, binary: bool) -> dict[str, Any]:
    scores = scores_of(generator, 5, binary)
    found: list[list[float]] = []
    choice = niches.jax.random.choice

    def recorded(key: Any, size: int, shape: tuple[int, ...], p: Any) -> Any:
        found.append(np.asarray(p).tolist())
        return niches.jnp.array([2])  # the first parent is member 2

    niches.jax.random.choice = recorded
    try:
        niches.sample_parents(niches.jnp.arange(5.0), niches.jnp.array(scores), jax.random.PRNGKey(0), alpha, True)
    finally:
        niches.jax.random.choice = choice
    return {"alpha": alpha, "scores": scores.tolist(), "first": 2, "fitness": found[0], "attraction": found[1]}


def archives(niches: Any, generator: np.random.Generator, alpha: float, binary: bool) -> dict[str, Any]:
    jnp, size = niches.jnp, 4
    children = scores_of(generator, 30, binary)
    archive, scores = jnp.full([size, 1], -1.0), jnp.zeros([size, children.shape[1]])
    living = []
    for number, row in enumerate(children):
        archive, scores = niches.update_archive(jnp.array(row), jnp.array([float(number)]), archive, scores, alpha)
        living.append([int(name) for name in np.asarray(archive)[:, 0] if name >= 0])
    return {"alpha": alpha, "size": size, "scores": children.tolist(), "living": living}


def child(helper: Any, generator: np.random.Generator, weight: float, split: int) -> dict[str, Any]:
    first, second = generator.standard_normal((2, 24)).astype(np.float32).astype(float)
    found = helper.slerp_w_splitpoint(weight, split, helper.jnp.array(first), helper.jnp.array(second))
    return {
        "weight": weight,
        "split": split,
        "first": first.tolist(),
        "second": second.tolist(),
        "child": np.asarray(found).tolist(),
    }


def cycle_qd(folder: Path) -> dict[str, Any]:
    """Return niches, draws of elites, a crossover and a mutation by the authors' code."""
    sys.path.insert(0, str(folder))
    for name, attributes in {"vllm": ["LLM"], "fishfarm.models.vllm_model": ["VLLMModel"]}.items():
        sys.modules[name] = ModuleType(name)
        for attribute in attributes:
            setattr(sys.modules[name], attribute, object)
    for name in ("fishfarm", "fishfarm.models"):
        sys.modules[name] = ModuleType(name)
    generator = np.random.default_rng(1)
    task = importlib.import_module("tasks.base").BaseTask(1, [0.0], [0.45], [15])
    values = [*generator.uniform(-0.1, 0.6, 40).tolist(), 0.0, 0.45, 1.0]
    return {
        "niches": {"low": 0.0, "high": 0.45, "bins": 15, "values": values}
        | {"found": [int(task._get_bin_id(0, value)) for value in values]},
        "elites": [elites(generator, count) for count in (2, 5, 9)],
        "crossover": crossover(generator),
        "mutation": mutation(generator),
    }


def elites(generator: np.random.Generator, count: int) -> dict[str, Any]:
    sampler = importlib.import_module("sampler.elite_sampler").EliteSampler(0)
    data = importlib.import_module("datatypes").ArchiveData
    cells = list(dict.fromkeys(map(tuple, generator.integers(0, 6, (count, 2)).tolist())))
    qualities = generator.random(len(cells)).tolist()
    archive = {cell: data(quality, "", 1, 0.0) for cell, quality in zip(cells, qualities, strict=True)}
    found: list[list[float]] = []

    class Recorder:
        def choice(self, size: int, count: int, p: np.ndarray, replace: bool) -> list[int]:
            found.append(p.tolist())
            return [0, 1]

    sampler.np_random = Recorder()
    sampler.sample(archive)
    return {"cells": cells, "qualities": qualities, "probabilities": found[0]}


def crossover(generator: np.random.Generator) -> dict[str, Any]:
    merger = importlib.import_module("crossover.model_linear").ModelwiseLinearMerge(std=0.01)
    vectors = torch.from_numpy(generator.standard_normal((2, 6, 4)).astype(np.float32))
    torch.manual_seed(3)
    weights = torch.normal(1.0, 0.01, size=(2,))
    torch.manual_seed(3)
    merged = merger._merge([{"w": vector} for vector in vectors], np.array([0.0, 0.01]))
    return {"vectors": vectors.tolist(), "weights": weights.tolist(), "merged": merged["w"].tolist()}


def mutation(generator: np.random.Generator) -> dict[str, Any]:
    module = importlib.import_module("mutation.svd_uniform_mutator")
    vector = torch.from_numpy(generator.standard_normal((6, 4)).astype(np.float32))
    u, s, vh = torch.linalg.svd(vector, full_matrices=False)
    mutator = module.SVDUniformMutator.__new__(module.SVDUniformMutator)
    mutator.svd_dict = {"task": {"w.U": u, "w.S": s, "w.V": vh.T}}
    draws, rate = torch.from_numpy(generator.random(4).astype(np.float32)), 0.25
    module.torch.rand = lambda **options: draws.clone()
    torch.Tensor.cuda = lambda self: self  # type: ignore[method-assign,assignment]
    mutated = mutator._mutate({"w": vector.clone()}, "task", np.array(rate))
    return {"vector": vector.tolist(), "draws": draws.tolist(), "rate": rate, "mutated": mutated["w"].tolist()}


def grid() -> dict[str, Any]:
    """Return what pyribs keeps of a sequence of members, two of three of which lie inside the grid."""
    from ribs.archives import GridArchive

    generator = np.random.default_rng(2)
    archive = GridArchive(solution_dim=1, dims=[5, 4], ranges=[(0.0, 1.0), (-1.0, 3.0)])
    steps = []
    for number in range(80):
        values = [float(generator.uniform(-0.2, 1.2)), float(generator.uniform(-2.0, 4.0))]
        quality = round(float(generator.random()), 1)  # with ties
        status = archive.add_single([number], quality, values)["status"]
        steps.append({"values": values, "quality": quality, "added": bool(status > 0)})
    data = archive.data(["solution", "objective", "index"])
    cells = archive.int_to_grid_index(data["index"]).tolist()
    elites = [
        {"cell": cell, "name": int(name[0]), "quality": float(quality)}
        for cell, name, quality in zip(cells, data["solution"], data["objective"], strict=True)
    ]
    stats = archive.stats
    return {"steps": steps, "elites": elites, "coverage": float(stats.coverage), "qd_score": float(stats.qd_score)}


if __name__ == "__main__":
    values = {
        "natural_niches": natural_niches(Path(sys.argv[1])),
        "cycle_qd": cycle_qd(Path(sys.argv[2])),
        "pyribs": grid(),
    }
    (HERE / "population_searchers.json").write_text(json.dumps(values) + "\n", encoding="utf-8")
