"""Parameter space, layer routing and the hybrid of both at equal budgets, over several seeds.

    python benchmarks/hybrid.py [--seeds 3] [--trials 300] [--out runs/hybrids]

Runs the shipped experiments `hybrid` (half of the budget in each stage), its first stage alone and `layer-routing` with
as many trials each. Prints what each picked scores on the confirmation items (mean over the objectives, 95% interval
over items) with the reference models beside it, and at the end the hybrid less parameter space alone, seed by seed. A
run that is there is gone on with.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from evomerge.cli.display import make_display
from evomerge.experiments.confirmation import read_confirmation
from evomerge.experiments.run import resume, start
from evomerge.experiments.run_folder import RunFolder
from evomerge.experiments.schema import read_experiment

PARAMETER = "search_space={kind: parameter, method: task_arithmetic, granularity: global, groups: [attention, mlp]}"
KINDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "parameter": ("hybrid", (PARAMETER,)),
    "hybrid": ("hybrid", ()),
    "routing": ("layer-routing", ()),
    "routing, scaled": ("layer-routing", ("search_space.scales=step",)),
}


def main() -> None:
    """Run the benchmark."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--seeds", type=int, default=3)
    arguments.add_argument("--trials", type=int, default=300)
    arguments.add_argument("--out", type=Path, default=Path("runs/hybrids"))
    options = arguments.parse_args()
    means: dict[str, list[float]] = {}
    for seed in range(options.seeds):
        for kind, (name, overrides) in KINDS.items():
            out = options.out / f"{kind.replace(', ', '-')}-{seed}"
            settings = (*overrides, f"budget.trials={options.trials}", f"searcher.seed={seed}")
            run(name, settings, out)
            found = read_confirmation(RunFolder(out).confirmation)
            assert found is not None
            rows = [(row.label, row.mean) for row in found.rows if row.trial in (None, found.pick)]
            means.setdefault(kind, []).append(found.trials[found.pick].mean.value)
            told = ", ".join(f"{label} {mean.value:.3f} [{mean.low:.3f}, {mean.high:.3f}]" for label, mean in rows)
            print(f"seed {seed} {kind}: {told}", flush=True)
    for kind, values in means.items():
        print(f"{kind:<16} {statistics.mean(values):.3f} ± {statistics.stdev(values):.3f} over {len(values)} seeds")
    gains = [ours - theirs for ours, theirs in zip(means["hybrid"], means["parameter"], strict=True)]
    print(f"hybrid − parameter, seed by seed: {', '.join(f'{gain:+.3f}' for gain in gains)}")


def run(name: str, settings: tuple[str, ...], out: Path) -> None:
    """Run an experiment to its end, or go on with it."""
    with make_display() as display:
        if (out / "experiment.yaml").exists():
            resume(out, display)
        else:
            start(read_experiment(name, settings), out, display)


if __name__ == "__main__":
    main()
