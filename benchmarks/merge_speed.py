"""How long merging takes, beside copying the same bytes and beside mergekit.

    python benchmarks/merge_speed.py [--hidden 1024] [--layers 12] [--threads 2] [--dtype bfloat16] [--parents 3]
                                     [--only ties dare_ties] [--peer PYTHON_WITH_MERGEKIT]

Makes a random Llama (200M parameters unless told otherwise), a base and some parents, and merges them into a resident
model: once to prepare what depends on the parents alone, then with other numbers each time. Printed are

- prepare: seconds of the first merge beyond those of the following ones;
- merge: the fastest of the following merges, in seconds;
- × memcpy: beside copying the parents, once;
- × mergekit: how many times faster than mergekit's executor in memory, in the same run, reading from the same files
  and copying into a resident model as its evolutionary search does. mergekit goes second, so pages are cached for both.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from evomerge.merging import InPlaceMerger, Parents
from evomerge.merging.preparations import Preparations
from evomerge.recipes import Recipe, write_recipe

REPEATS = 5
PARAMETERS: dict[str, dict[str, Any]] = {
    "linear": {},
    "task_arithmetic": {},
    "slerp": {"t": 0.4},
    "dare_linear": {"density": 0.5},
    "dare_ties": {"density": 0.5},
    "ties": {"density": 0.5},
    "breadcrumbs": {"density": 0.5, "gamma": 0.02},
    "breadcrumbs_ties": {"density": 0.5, "gamma": 0.02},
    "della_linear": {"density": 0.5},
    "della": {"density": 0.5},
    "sce": {"select_topk": 0.5},
    "multislerp": {},
    "nearswap": {"t": 0.001},
    "ram": {"epsilon": 0.0001},
    "ramplus_tl": {"r": 0.1},
}
TWO_MODELS = ("slerp", "nearswap")


def main() -> None:
    """Run the benchmark."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--hidden", type=int, default=1024)
    arguments.add_argument("--layers", type=int, default=12)
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--dtype", default="bfloat16")
    arguments.add_argument("--parents", type=int, default=3)
    arguments.add_argument("--only", nargs="*", default=list(PARAMETERS))
    arguments.add_argument("--peer", help="a Python that has mergekit")
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        paths = make_models(
            Path(folder), options.hidden, options.layers, getattr(torch, options.dtype), options.parents
        )
        report_reading(str(paths["base"]))
        print(f"{'method':<16} {'prepare':>9} {'merge':>9} {'× memcpy':>9} {'× mergekit':>11}")
        for method in options.only:
            recipe = recipe_of(method, paths)
            first, again, copying = measure(recipe, paths)
            peer = f"{measure_peer(options.peer, recipe, paths, options.threads) / again:11.1f}" if options.peer else ""
            print(f"{method:<16} {first - again:7.3f} s {again:7.3f} s {again / copying:9.2f} {peer}", flush=True)


def make_models(folder: Path, hidden: int, layers: int, dtype: torch.dtype, parents: int = 3) -> dict[str, Path]:
    """Write a base and parents that differ from it by a little, without tokenizers."""
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=hidden * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        vocab_size=32 * hidden,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).to(dtype)
    start = {name: value.clone() for name, value in model.named_parameters()}
    names = ("base", *(f"parent{number}" for number in range(parents)))
    for name in names:
        for key, parameter in model.named_parameters():
            noise = 0 if name == "base" else 0.002 * torch.randn(parameter.shape)
            parameter.data = (start[key].float() + noise).to(dtype)
        model.save_pretrained(folder / name)
    return {name: folder / name for name in names}


def report_reading(base: str) -> None:
    """Print how large a parent is and how fast it is searched for NaN."""
    checkpoint = Parents.open([base])[base]
    seconds = fastest(checkpoint.check_finite)
    size = checkpoint.num_bytes / 1e9
    print(f"one model: {size:.3f} GB, {len(checkpoint.tensors)} tensors; NaN check {seconds / size:.2f} s/GB")


def recipe_of(method: str, paths: dict[str, Path], shift: float = 0.0) -> Recipe:
    """Return a recipe of all parents (of one, for methods of two models); ``shift`` changes its numbers."""
    names = [name for name in paths if name != "base"][: 1 if method in TWO_MODELS else None]
    weight = {} if method in TWO_MODELS else {"weight": 0.3 + shift}
    fields: dict[str, Any] = {} if method == "linear" else {"base_model": str(paths["base"])}
    models = [{"model": str(paths[name]), "parameters": weight} for name in names]
    numbers = {name: value + shift for name, value in PARAMETERS[method].items()}
    return Recipe.model_validate(fields | {"merge_method": method, "models": models, "parameters": numbers})


def measure(recipe: Recipe, paths: dict[str, Path]) -> tuple[float, float, float]:
    """Return the seconds of the first merge, of a later one, and of copying the parents."""
    parents = Parents.open(recipe.parents())
    base = recipe.base_model or str(paths["parent0"])
    with tempfile.TemporaryDirectory() as prepared:
        merger = InPlaceMerger(parents, base=base, prepared=Preparations(Path(prepared)))
        started = time.perf_counter()
        merger.merge(recipe)
        first = time.perf_counter() - started
        others = iter([recipe_of(recipe.merge_method, paths, 0.01 * (n + 1)) for n in range(REPEATS)])
        again = fastest(lambda: merger.merge(next(others)))
    read = sum(parents[reference].num_bytes for reference in recipe.parents())
    source, target = (torch.ones(read, dtype=torch.uint8) for _ in range(2))
    return first, again, fastest(lambda: target.copy_(source))


def measure_peer(python: str, recipe: Recipe, paths: dict[str, Path], threads: int) -> float:
    """Return the seconds that mergekit takes for the same merge."""
    job = {"recipe": write_recipe(recipe), "base": str(paths["base"]), "threads": threads}
    script = Path(__file__).with_name("peer_merge.py")
    command = [python, str(script)]
    done = subprocess.run(command, input=json.dumps(job), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return float(done.stdout.split()[-1])


def fastest(action: Callable[[], Any]) -> float:
    """Return the fewest seconds that an action took."""
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


if __name__ == "__main__":
    main()
