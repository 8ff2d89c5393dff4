"""Real Ray workers that sleep: what the pool and the driver's loop cost when many evaluations are under way.

    python benchmarks/pool.py [--workers 8 64] [--sigma 0.5] [--median 5] [--rounds 8] [--searcher random]

Like `scaling.py efficiency`, but with processes of Ray's and by the clock: the run's own pool, whose workers sleep for
log-normal seconds instead of merging and evaluating. A worker takes about 0.1 GB of memory.
"""

from __future__ import annotations

import argparse
import logging
import math
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import ray
from scaling import ITEMS, Driver, Laps, SimulatedPlan, busy, make_searcher, make_space

from evomerge.experiments.evaluations import Evaluations
from evomerge.experiments.identity import usual_in_flight
from evomerge.fitness.responses import Responses, TaskResponses
from evomerge.workers import Outcome, Pool, WorkerSpec
from evomerge.workers import pool as pools
from evomerge.workers.actor import Ready
from evomerge.workers.versions import versions

ANSWER = Responses(
    {
        task: TaskResponses(
            tuple(f"{task}-{n}" for n in range(ITEMS)), {"acc,none": [float(n % 2) for n in range(ITEMS)]}
        )
        for task in ("math", "japanese")
    }
).to_json()


class Sleeper:
    """Answers like a worker, after as many seconds as the recipe's hash draws."""

    def __init__(self, spec: WorkerSpec) -> None:
        self._median, self._sigma = float(spec.references["median"]), float(spec.references["sigma"])

    def ready(self) -> Ready:
        """Return who it is."""
        return Ready("sleeper", "here", "", "none", 1, versions())

    def evaluate(self, recipe: str, *asked: object) -> Outcome:
        """Sleep, and tell when."""
        seconds = self._median * math.exp(self._sigma * random.Random(recipe).gauss(0, 1))
        began = time.time()
        time.sleep(seconds)
        return Outcome(ANSWER, seconds=seconds, worker=f"{began} {time.time()}", device="none", batch_size=8)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", nargs="+", type=int, default=[8, 64])
    parser.add_argument("--sigma", type=float, default=0.5)
    parser.add_argument("--median", type=float, default=5.0, help="seconds of an evaluation")
    parser.add_argument("--rounds", type=int, default=8, help="evaluations a worker")
    parser.add_argument("--searcher", default="random")
    options = parser.parse_args()
    pools.Worker = Sleeper  # type: ignore[assignment,misc]
    ray.init(num_cpus=max(options.workers), include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    for workers in options.workers:
        print(measured(workers, options), flush=True)


def measured(workers: int, options: argparse.Namespace) -> str:
    """Return a line: the workers' busy share in steady state, and the driver's processor time."""
    spec: Any = WorkerSpec(
        {"median": str(options.median), "sigma": str(options.sigma)}, {}, "float32", "", "cpu", threads=1
    )
    space, in_flight = make_space(200), usual_in_flight(workers, learns=True)
    trials, spans = in_flight + workers * options.rounds, []

    def seen(trial: Any) -> None:
        spans.append((float(trial.worker.split()[0]), float(trial.worker.split()[1])))

    with tempfile.TemporaryDirectory() as folder, Pool(spec, workers, retries=0) as pool:
        while pool.size < workers:
            pool._welcome(next(member for member in pool._members if member.ready is None))
        evaluations = Evaluations(lambda: pool, SimulatedPlan(), Path(folder) / "responses")
        worked = time.process_time()
        searcher = make_searcher(options.searcher, space, trials)
        Driver(Path(folder), space, Laps()).run(searcher, evaluations, trials, in_flight, seen)
        cost = 1e3 * (time.process_time() - worked) / trials
    spans.sort()
    # Steady: from the first evaluation that had to wait for a worker to the last that began.
    share = 100 * busy(spans, spans[workers][0], spans[-1][0]) / workers
    return (
        f"{options.searcher:<8} {workers:4d} workers, sigma {options.sigma}, {in_flight} in flight, {trials} trials: "
        f"busy {share:.1f}% in steady state; driver {cost:.1f} ms of processor time a trial"
    )


if __name__ == "__main__":
    main()
