"""Memory and time of the streaming engine at several model sizes: the memory must not grow.

    python benchmarks/scale.py                       # 0.2, 1 and 4 GB; needs 17 GB of disk for the largest
    python benchmarks/scale.py --sizes 1.7 --vocabulary 400000     # one tensor of 0.8 GB
    python benchmarks/scale.py --sizes 0.2 1 --methods ties slerp --folder /scratch

For each size, random bf16 Llama models (a base and two parents) of ever more layers are written shard by shard and
merged by a fresh process, whose peak of resident memory (VmHWM of Linux, mapped pages included) is printed beside the
bound (largest tensor × (parents + 2) + 1 GiB). The models are removed again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from evomerge.checkpoints import Checkpoint, CheckpointWriter, TensorSpec
from evomerge.merging import Parents, merge_to_folder
from evomerge.recipes import Recipe

HIDDEN, INTERMEDIATE, HEADS = 1024, 2816, 16
PARENTS = ("a", "b")
METHODS = {
    "linear": {"weight": 0.5},
    "task_arithmetic": {"weight": 0.5},
    "slerp": {"t": 0.5},
    "ties": {"weight": 0.5, "density": 0.5},
    "dare_ties": {"weight": 0.5, "density": 0.5},
}


def specs(num_layers: int, vocabulary: int) -> list[TensorSpec]:
    """Return the tensors of a Llama of so many layers, in bf16."""
    square, up, down = (HIDDEN, HIDDEN), (INTERMEDIATE, HIDDEN), (HIDDEN, INTERMEDIATE)
    layer = {f"self_attn.{name}_proj.weight": square for name in "qkvo"}
    layer |= {"mlp.gate_proj.weight": up, "mlp.up_proj.weight": up, "mlp.down_proj.weight": down}
    layer |= {"input_layernorm.weight": (HIDDEN,), "post_attention_layernorm.weight": (HIDDEN,)}
    shapes = {"model.embed_tokens.weight": (vocabulary, HIDDEN), "lm_head.weight": (vocabulary, HIDDEN)}
    shapes |= {f"model.layers.{i}.{name}": shape for i in range(num_layers) for name, shape in layer.items()}
    shapes["model.norm.weight"] = (HIDDEN,)
    return [TensorSpec(name, shape, torch.bfloat16) for name, shape in shapes.items()]


def layers_for(size: float, vocabulary: int) -> int:
    """Return how many layers make a model of about ``size`` bytes."""
    empty, one = (sum(spec.num_bytes for spec in specs(count, vocabulary)) for count in (0, 1))
    return max(1, round((size - empty) / (one - empty)))


def write_model(folder: Path, num_layers: int, vocabulary: int, seed: int) -> None:
    """Write a random model, a tensor at a time."""
    numbers = torch.randn(1 << 22, generator=torch.Generator().manual_seed(seed)).mul_(0.02).bfloat16()
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": num_layers,
        "num_attention_heads": HEADS,
        "vocab_size": vocabulary,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    }
    planned = specs(num_layers, vocabulary)
    with CheckpointWriter(folder, planned, "1GB") as writer:
        for number, spec in enumerate(planned):
            count = torch.Size(spec.shape).numel()
            start = 7919 * number % 4096
            writer.write(spec.name, numbers.repeat(2 + count // len(numbers))[start : start + count].view(spec.shape))
        (writer.folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def measure(method: str, folder: Path) -> None:
    """Merge in this process, and print what it took."""
    parameters = METHODS[method]
    inputs = PARENTS if method != "slerp" else PARENTS[:1]
    recipe = Recipe.model_validate(
        {
            "merge_method": method,
            "models": [{"model": str(folder / name)} for name in inputs],
            "parameters": parameters,
            **({} if method == "linear" else {"base_model": str(folder / "base")}),
        }
    )
    parents = Parents.open(recipe.parents())
    before, start = peak(), time.perf_counter()
    merge_to_folder(recipe, folder / "out", parents=parents, max_shard_size="1GB")
    seconds = time.perf_counter() - start
    print(json.dumps({"before": before, "peak": peak(), "seconds": seconds, "parents": len(parents.checkpoints)}))


def peak() -> int:
    """Return this process's peak of resident memory, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


def run(size: float, vocabulary: int, methods: list[str], place: Path) -> None:
    """Make the models of one size, merge them by each method and print a line each."""
    num_layers = layers_for(size, vocabulary)
    total = sum(spec.num_bytes for spec in specs(num_layers, vocabulary))
    needed, free = 4 * total + (1 << 28), shutil.disk_usage(place).free
    if needed > free:
        sys.exit(f"{place}: {needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free; name another --folder")
    with tempfile.TemporaryDirectory(dir=place, prefix="evomerge-scale-") as name:
        folder = Path(name)
        for seed, model in enumerate(("base", *PARENTS)):
            write_model(folder / model, num_layers, vocabulary, seed)
        largest = max(info.stop - info.start for info in Checkpoint(folder / "base").tensors.values())
        for method in methods:
            command = [sys.executable, __file__, "--measure", method, "--folder", str(folder)]
            took = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            bound = largest * (took["parents"] + 2) + (1 << 30)
            moved = total * (took["parents"] + 1)
            print(
                f"{total / 1e9:5.2f} GB, {num_layers:3d} layers, largest tensor {largest / 1e6:.0f} MB: {method:16s}",
                f"{took['parents']} models  peak {took['peak'] / 1e6:.0f} MB (bound {bound / 1e6:.0f};",
                f"{took['before'] / 1e6:.0f} before the merge)",
                f" {took['seconds']:.1f} s, {moved / took['seconds'] / 1e9:.2f} GB/s",
                flush=True,
            )
            shutil.rmtree(folder / "out")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=float, nargs="+", default=[0.2, 1.0, 4.0], help="gigabytes of one model")
    parser.add_argument("--vocabulary", type=int, default=32_000, help="tokens; the largest tensor has a row for each")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["linear", "task_arithmetic", "ties"])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="where the models are made")
    parser.add_argument("--measure", choices=METHODS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure, options.folder)
        return
    for size in options.sizes:
        run(size * 1e9, options.vocabulary, options.methods, options.folder)


if __name__ == "__main__":
    main()
