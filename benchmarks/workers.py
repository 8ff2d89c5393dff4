"""Workers side by side: trials a minute with 1, 2, … workers of one thread each, in turn, and what the machine gives.

    python benchmarks/workers.py [EXPERIMENT] [--workers 1 2] [--trials 24] [--rounds 12]

Real merges and evaluations of the experiment (quickstart), each recipe once; building workers and their first trials do
not count. All pools are there from the start and take turns of some seconds, since machines change their speed in
minutes. In each turn as many plain processes as workers multiply matrices for a second: no pool can gain more from a
second core than these do.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path

import ray

from evomerge.cli.display import make_display
from evomerge.experiments.calibration import random_merges
from evomerge.experiments.evaluations import Asked, Evaluations, FixedPlan
from evomerge.experiments.preflight import Prepared, prepare
from evomerge.experiments.run_workers import open_workers
from evomerge.experiments.schema import WorkersConfig, read_experiment
from evomerge.fitness.estimate_config import CalibrationConfig
from evomerge.recipes import Recipe
from evomerge.reports.progress import Display

WARM = 16  # trials while workers are built and tokenise their items


def main() -> None:
    """Run the benchmark."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("experiment", nargs="?", default="quickstart")
    arguments.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    arguments.add_argument("--trials", type=int, default=24, help="of a turn")
    arguments.add_argument("--rounds", type=int, default=12)
    options = arguments.parse_args()
    counts = options.workers
    experiment = read_experiment(options.experiment)
    # Pools that wait their turn hold their cores as well.
    ray.init(num_cpus=sum(counts), include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        display = stack.enter_context(make_display())
        burners = [stack.enter_context(Burner()) for _ in range(max(counts))]
        rates: dict[int, Callable[[Sequence[Recipe]], float]] = {}
        for count in counts:
            workers = WorkersConfig(devices="cpu", count=count, threads=1)
            prepared = prepare(experiment.model_copy(update={"workers": workers}))
            rates[count] = opened(stack, prepared, display, folder / str(count), count)
        recipes = list(
            random_merges(prepared, CalibrationConfig(models=WARM + options.rounds * options.trials)).values()
        )
        for count in counts:
            rates[count](recipes[:WARM])
        least, found, limits = counts[0], [], []
        for start in range(WARM, len(recipes), options.trials):
            rate = {count: rates[count](recipes[start : start + options.trials]) for count in counts}
            plain = {count: burn(burners[:count]) for count in counts}
            found.append([rate[count] / rate[least] for count in counts[1:]])
            limits.append([plain[count] / plain[least] for count in counts[1:]])
            told = ", ".join(
                f"{count} workers: {rate[count]:.0f} trials a minute (plain: {plain[count] / plain[least]:.2f} x)"
                for count in counts
            )
            print(told, flush=True)
    for index, count in enumerate(counts[1:]):
        ratios, plains = ([each[index] for each in rounds] for rounds in (found, limits))
        print(
            f"{count} workers / {least}: {statistics.median(ratios):.2f} x (rounds: {min(ratios):.2f} to "
            f"{max(ratios):.2f}); plain processes: {statistics.median(plains):.2f} x"
        )


def opened(
    stack: ExitStack, prepared: Prepared, display: Display, folder: Path, count: int
) -> Callable[[Sequence[Recipe]], float]:
    """Start so many workers; return a function that evaluates recipes, each once, and returns trials a minute."""
    workers = stack.enter_context(open_workers(prepared, display, None, lambda: None))
    plan = FixedPlan("search", prepared.fitness, Asked(prepared.fitness.items("search"), {}))
    evaluations = Evaluations(workers.pool, plan, folder)

    def rate(recipes: Sequence[Recipe]) -> float:
        began = time.perf_counter()
        for recipe in recipes:
            evaluations.start(recipe)
        for recipe in recipes:
            evaluations.outcome(recipe)
        assert workers.count == count, "all are there by now"
        return 60 * len(recipes) / (time.perf_counter() - began)

    return rate


class Burner:
    """A process of its own that multiplies matrices when asked."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=multiply, args=(theirs,), daemon=True)

    def __enter__(self) -> Burner:
        self._process.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._process.terminate()
        self._process.join()


def multiply(connection: Connection) -> None:
    """Multiply matrices for as many seconds as each message says, and answer how many it were."""
    import torch

    torch.set_num_threads(1)
    matrix = torch.eye(128)
    while True:
        seconds, done = connection.recv(), 0
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            for _ in range(100):
                matrix @ matrix
            done += 100
        connection.send(done)


def burn(burners: Sequence[Burner]) -> int:
    """Return how many products these make in a second, side by side."""
    for burner in burners:
        burner.connection.send(1.0)
    return sum(burner.connection.recv() for burner in burners)


if __name__ == "__main__":
    main()
