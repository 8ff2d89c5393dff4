"""What running a path costs: time beside its depth, memory beside that of its parents.

    python benchmarks/routing.py [--hidden 512] [--layers 8] [--threads 2]

Makes two random Llamas and routes paths of other depths through the layers of both. Printed are

- route: seconds to set the path into the resident model;
- forward: seconds of one forward pass over 4 × 128 tokens;
- × depth: forward beside that of a parent, divided by the path's depth beside the parent's; 1 is proportional.
  Embeddings, final norm and head cost the same whatever the depth;
- memory: bytes of the model's weights, each counted once, beside those of both parents together.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from merge_speed import fastest
from transformers import LlamaConfig, LlamaForCausalLM

from evomerge.merging import InPlaceMerger, Parents
from evomerge.recipes import PathStep, routed_recipe


def main() -> None:
    """Run the benchmark."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--hidden", type=int, default=512)
    arguments.add_argument("--layers", type=int, default=8)
    arguments.add_argument("--threads", type=int, default=2)
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    with tempfile.TemporaryDirectory() as folder:
        models = make_models(Path(folder), options.hidden, options.layers)
        parents = Parents.open(models)
        merger = InPlaceMerger(parents, base=models[0])
        both = sum(parents[model].num_bytes for model in models)
        tokens = torch.randint(0, 1000, (4, 128))
        own = [PathStep(models[0], layer) for layer in range(options.layers)]
        merger.merge(routed_recipe(own))
        alone = fastest(lambda: merger.model(tokens))
        print(f"a parent: {options.layers} layers, forward {alone:.3f} s; both parents: {both / 1e6:.0f} MB")
        print(f"{'layers':>6} {'route':>9} {'forward':>9} {'× depth':>8} {'memory':>7}")
        for depth in (options.layers // 2, options.layers, 2 * options.layers, 3 * options.layers):
            path = [PathStep(models[step % 2], step % options.layers, 1.1) for step in range(depth)]
            merger.merge(routed_recipe(path, outside=models[0]))  # loads what it goes through
            route = fastest(lambda path=path: merger.merge(routed_recipe(path, outside=models[0])))
            forward = fastest(lambda: merger.model(tokens))
            ratio = forward / alone / (depth / options.layers)
            print(f"{depth:6} {route:7.4f} s {forward:7.3f} s {ratio:8.2f} {weights(merger) / both:7.2f}")


def make_models(folder: Path, hidden: int, layers: int) -> list[str]:
    """Write two random models."""
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=hidden * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        vocab_size=1000,
    )
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(folder / name)
    return [str(folder / name) for name in "ab"]


def weights(merger: InPlaceMerger) -> int:
    """Return the bytes of all weights that the merger holds, each once: the model's and the layers of paths."""
    modules: list[Any] = [merger.model, *(layers.modules for layers in merger.layers.values())]
    storages = [p.untyped_storage() for module in modules for p in module.parameters()]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


if __name__ == "__main__":
    main()
