"""A whole experiment on plain tensors of a few numbers: networks without a model of transformers, scored in batches."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

SHAPES = {"hidden.bias": (6,), "hidden.weight": (6, 4), "out.weight": (3, 6)}
SCORE = '''\
"""How near small networks come to a target, an item each; and faults on demand."""

import os
import signal
from pathlib import Path

import torch

TEXTS = [f"point {number}" for number in range(30)]
POINTS = torch.randn(30, 4, generator=torch.Generator().manual_seed(7))
TARGETS = torch.randn(30, 3, generator=torch.Generator().manual_seed(8))
SIZES = Path(__file__).with_name("sizes")
TODO = Path(__file__).with_name("todo")


def near(batch, items):
    """Falls with the distance to the target; a file ``todo`` beside this one makes large weights deadly."""
    with SIZES.open("a") as file:
        file.write(f"{len(batch['out.weight'])} ")
    rows = [TEXTS.index(item) for item in items]
    found = []
    for weight, bias, out in zip(batch["hidden.weight"], batch["hidden.bias"], batch["out.weight"]):
        if TODO.exists() and float(out.abs().max()) > 1e3:
            os.kill(os.getpid(), signal.SIGKILL)
        answers = torch.addmm(bias, POINTS[rows], weight.T).relu() @ out.T
        found.append(torch.exp(-(answers - TARGETS[rows]).square().mean(1)))
    return torch.stack(found)


def near_items():
    return TEXTS


def small(tensors):
    """Falls with the squares of the weights."""
    return -sum(float(tensor.square().sum()) for tensor in tensors.values())
'''

EXPERIMENT = """\
name: plain
base: ./models/base
parents: {a: ./models/a, b: ./models/b}
search_space: {kind: parameter, method: task_arithmetic, granularity: global}
fitness:
  objectives:
    - {function: "./score.py:near", name: near}
searcher: {kind: cma-es, population: 6, seed: 1}
budget: {trials: 24}
"""


def plain_experiment(folder: Path) -> Path:
    """Write networks, fitness and experiment file into ``folder``; return the experiment file's path."""
    for seed, name in enumerate(("base", "a", "b")):
        generator = torch.Generator().manual_seed(seed)
        (folder / "models" / name).mkdir(parents=True)
        tensors = {tensor: torch.randn(shape, generator=generator) for tensor, shape in SHAPES.items()}
        save_file(tensors, folder / "models" / name / "model.safetensors")
    (folder / "score.py").write_text(SCORE, encoding="utf-8")
    experiment = folder / "experiment.yaml"
    experiment.write_text(EXPERIMENT, encoding="utf-8")
    return experiment
