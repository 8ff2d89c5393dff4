"""How long comparing models takes, beside copying the same bytes: `evomerge kinship` on models of bfloat16.

    python benchmarks/kinship.py [--hidden 1024] [--layers 12] [--threads 2] [--dtype bfloat16] [--peer MODELKINSHIP]

Makes a random Llama (200M parameters unless told otherwise), a base and three parents that are fine-tuned from it, and
compares two and three of them with all metrics at once. Printed are seconds, the fastest of five runs with the files in
the page cache, and how many times as long that is as a memcpy of the same bytes (the models' and the base's). With
--peer, a checkout of github.com/zjunlp/ModelKinship, also the seconds of its own comparison of two models for each
metric, their weights loaded in float32 beforehand.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from pathlib import Path

import torch
from merge_speed import fastest, make_models

from evomerge.experiments.kinship import models_compared, products_of
from evomerge.merging import Parents


def main() -> None:
    """Run the benchmark."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--hidden", type=int, default=1024)
    arguments.add_argument("--layers", type=int, default=12)
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--dtype", default="bfloat16")
    arguments.add_argument("--peer", type=Path, help="a checkout of the authors' code")
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        paths = {
            n: str(p)
            for n, p in make_models(Path(folder), options.hidden, options.layers, getattr(torch, options.dtype)).items()
        }
        print(f"{'models':<8} {'pairs':>6} {'compare':>10} {'memcpy':>10} {'× memcpy':>9}")
        for names in ("ab", "abc"):
            compared = models_compared([paths[name] for name in names], paths["base"])
            parents = Parents.open([compared.base, *compared.models.values()])
            seconds = fastest(lambda c=compared, p=parents: products_of(c, p))
            read = sum(checkpoint.num_bytes for checkpoint in parents.checkpoints.values())
            source, target = (torch.ones(read, dtype=torch.uint8) for _ in range(2))
            copying = fastest(lambda s=source, t=target: t.copy_(s))
            pairs = len(names) * (len(names) - 1) // 2
            print(f"{len(names):<8} {pairs:>6} {seconds:8.3f} s {copying:8.3f} s {seconds / copying:9.2f}", flush=True)
        if options.peer is not None:
            report_peer(options.peer, paths)


def report_peer(checkout: Path, paths: dict[str, str]) -> None:
    """Print how long the authors' code takes for each metric of two models, whose weights are loaded in float32."""
    sys.path.insert(0, str(checkout))
    from metrics import calculate, utility

    logging.disable(logging.CRITICAL)
    utility.tqdm = lambda items, **_: items

    def loaded(folder: str, device: str) -> dict[str, torch.Tensor]:
        checkpoint = Parents.open([folder])[folder]
        return {name: checkpoint.tensor(name).float() for name in checkpoint.tensors}

    weights = {path: loaded(path, "cpu") for path in (paths["a"], paths["b"], paths["base"])}
    utility.load_model_state_dict = lambda name, device: weights[name]
    for metric in ("pcc", "cs", "ed"):
        seconds = fastest(
            lambda m=metric: calculate.calculate_model_kinship(
                *utility.extract_delta_parameters(paths["a"], paths["b"], paths["base"], False), [m]
            )
        )
        print(f"theirs, {metric}: {seconds:8.3f} s")


if __name__ == "__main__":
    main()
