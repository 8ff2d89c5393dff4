"""Workers side by side: trials a minute with 1, 2, … workers of one thread each, in one process, turn by turn.

    python benchmarks/workers.py [EXPERIMENT] [--workers 1 2] [--trials 60] [--rounds 3]

Real merges and evaluations of the experiment (quickstart), each recipe once; building workers and their first trial do
not count.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from evomerge.cli.display import make_display
from evomerge.experiments.calibration import random_merges
from evomerge.experiments.evaluations import Asked, Evaluations, FixedPlan
from evomerge.experiments.preflight import Prepared, prepare
from evomerge.experiments.run_workers import open_workers
from evomerge.experiments.schema import WorkersConfig, read_experiment
from evomerge.fitness.estimate_config import CalibrationConfig
from evomerge.recipes import Recipe

WARM = 16  # trials while workers are built and tokenise their items


def main() -> None:
    """Run the benchmark."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("experiment", nargs="?", default="quickstart")
    arguments.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    arguments.add_argument("--trials", type=int, default=60)
    arguments.add_argument("--rounds", type=int, default=3)
    options = arguments.parse_args()
    experiment = read_experiment(options.experiment)
    rates: dict[int, list[float]] = {count: [] for count in options.workers}
    for _ in range(options.rounds):
        for count in options.workers:
            workers = WorkersConfig(devices="cpu", count=count, threads=1)
            prepared = prepare(experiment.model_copy(update={"workers": workers}))
            recipes = list(random_merges(prepared, CalibrationConfig(models=options.trials)).values())
            rates[count].append(rate(prepared, recipes, count))
            print(f"{count} workers: {rates[count][-1]:.0f} trials a minute", flush=True)
    least = options.workers[0]
    for count in options.workers[1:]:
        ratios = [many / few for few, many in zip(rates[least], rates[count], strict=True)]
        listed = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        print(f"{count} workers / {least}: {statistics.median(ratios):.2f} x (rounds: {listed})")


def rate(prepared: Prepared, recipes: list[Recipe], count: int) -> float:
    """Return trials a minute of so many workers."""
    with (
        tempfile.TemporaryDirectory() as folder,
        make_display() as display,
        open_workers(prepared, display, None, lambda: None) as workers,
    ):
        plan = FixedPlan("search", prepared.fitness, Asked(prepared.fitness.items("search"), {}))
        evaluations = Evaluations(workers.pool, plan, Path(folder))
        warm, timed = recipes[:WARM], recipes[WARM:]
        for recipe in warm:
            evaluations.start(recipe)
        for recipe in warm:
            evaluations.outcome(recipe)
        assert workers.count == count, "all are there by now"
        began = time.perf_counter()
        for recipe in timed:
            evaluations.start(recipe)
        for recipe in timed:
            evaluations.outcome(recipe)
        return 60 * len(timed) / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
