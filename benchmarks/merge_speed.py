"""How long merging takes, beside copying the same bytes.

    python benchmarks/merge_speed.py [--hidden 512] [--layers 8] [--threads 2] [--dtype bfloat16]

Makes a random Llama, a base and three parents, and merges them in place: the first merge, which prepares what depends
on the parents alone, and the median of the following ones. Ratios are to a copy of as many bytes as the merge reads
and writes.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from evomerge.merging import InPlaceMerger, Parents
from evomerge.recipes import Recipe
from evomerge.testing.tiny_models import tiny_family

REPEATS = 5
PARAMETERS: dict[str, dict[str, Any]] = {
    "linear": {},
    "task_arithmetic": {},
    "slerp": {"t": 0.4},
    "dare_linear": {"density": 0.5},
    "dare_ties": {"density": 0.5},
    "ties": {"density": 0.5},
}


def main() -> None:
    """Run the benchmark."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--hidden", type=int, default=512)
    arguments.add_argument("--layers", type=int, default=8)
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--dtype", default="bfloat16")
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        size = {"layers": options.layers, "hidden": options.hidden, "vocab": 8 * options.hidden}
        paths = tiny_family(Path(folder), "llama", dtype=options.dtype, **size)
        parents = Parents.open([str(path) for path in paths.values()])
        report_reading(parents, str(paths["base"]))
        for method in PARAMETERS:
            report_method(method, parents, paths)


def report_reading(parents: Parents, base: str) -> None:
    """Print how fast a parent is searched for NaN."""
    checkpoint = parents[base]
    seconds = timed(checkpoint.check_finite)
    count = sum(info.stop - info.start for info in checkpoint.tensors.values()) / 1e9
    print(f"one model: {count:.3f} GB, {len(checkpoint.tensors)} tensors; NaN check {seconds / count:.2f} s/GB")


def report_method(method: str, parents: Parents, paths: dict[str, Path]) -> None:
    """Print one method's times."""
    recipe = recipe_of(method, paths)
    merger = InPlaceMerger(parents, base=str(paths["base"]), prepared_bytes=1 << 34)
    first = timed(lambda: merger.merge(recipe), repeats=1)
    again = timed(lambda: merger.merge(recipe))
    read = sum(parents[reference].num_bytes for reference in recipe.parents())
    source, target = torch.ones(read, dtype=torch.uint8), torch.empty(read, dtype=torch.uint8)
    copying = timed(lambda: target.copy_(source)) * (read + parents[recipe.parents()[0]].num_bytes) / (2 * read)
    print(f"{method:<16} first {first:7.3f} s   then {again:7.3f} s   {again / copying:6.1f} × memcpy")


def recipe_of(method: str, paths: dict[str, Path]) -> Recipe:
    """Return a recipe of all parents (of one, for slerp)."""
    names = ["a"] if method == "slerp" else ["a", "b", "c"]
    weight = {} if method == "slerp" else {"weight": 0.3}
    fields: dict[str, Any] = {} if method == "linear" else {"base_model": str(paths["base"])}
    models = [{"model": str(paths[name]), "parameters": weight} for name in names]
    fields |= {"merge_method": method, "models": models, "parameters": PARAMETERS[method]}
    return Recipe.model_validate(fields)


def timed(action: Callable[[], Any], repeats: int = REPEATS) -> float:
    """Return the median seconds of an action."""
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


if __name__ == "__main__":
    main()
