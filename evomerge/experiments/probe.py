"""A probe: a few evaluations in one worker, to tell how long all of them will take, and what they leave on the disk.

Two sizes of samples separate what an evaluation costs in any case from what each item adds. Recipes are the uniform
merge and merges drawn from the search space, as trials are; what only the first evaluation costs (prepared states,
prompts that are tokenised once) is kept apart.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import psutil

from evomerge.errors import WorkerError
from evomerge.experiments.calibration import random_merges
from evomerge.experiments.evaluations import Asked, Evaluations, FixedPlan
from evomerge.experiments.journal import Journal, Trial
from evomerge.experiments.preflight import Prepared, uniform
from evomerge.experiments.response_store import ResponseStore
from evomerge.experiments.run_workers import open_workers
from evomerge.fitness.estimate_config import CalibrationConfig
from evomerge.recipes import Recipe
from evomerge.reports.planned import Span
from evomerge.reports.progress import Display
from evomerge.workers import Outcome, Placement, Pool

USUAL_BATCH = 64
FEWEST = 32  # items of each task in the large sample, where there are so many

Items = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Probed:
    """What the probe found. Times are in seconds, of one worker.

    Attributes:
        seconds: of the whole probe.
        build: until the worker was ready.
        first: what the first evaluations cost beyond later ones.
        merge: of a trial.
        sample: items of each task in the large sample.
        large: evaluating it, merge apart.
        each: task to seconds an item, relative to the other tasks.
        fixed: what an evaluation costs in any case.
        item_bytes: of stored responses, an item.
        recipe_bytes: of stored responses, besides.
        trial_bytes: of a trial in the journal.
        memory: of the worker, its own pages; None if it is on another machine.
        batch_size: of the evaluations.
    """

    seconds: float
    build: float
    first: float
    merge: Span
    sample: Mapping[str, int]
    large: Span
    each: Mapping[str, float]
    fixed: float
    item_bytes: float
    recipe_bytes: float
    trial_bytes: int
    memory: int | None
    batch_size: int

    def evaluation(self, items: Mapping[str, int]) -> Span:
        """Return the seconds that a model's answers to so many items of each task take.

        The two ends: items cost all of an evaluation's time, or what is left of it after its fixed part.
        """
        share = sum(self.each[task] * count for task, count in items.items())
        share /= sum(self.each[task] * count for task, count in self.sample.items())
        fixed = min(self.fixed, self.large.low)
        ends = [time * share for time in (self.large.low, self.large.high)]
        ends += [fixed + (time - fixed) * share for time in (self.large.low, self.large.high)]
        return Span(min(ends), max(ends))


class _Prober:
    """Evaluates recipes on samples of the search items, one after the other."""

    def __init__(self, prepared: Prepared, pool: Callable[[], Pool], folder: Path) -> None:
        self._prepared, self._pool, self._folder = prepared, pool, folder
        self._count = 0

    def run(self, recipe: Recipe, items: Items) -> _Ran:
        """Return what an evaluation came to.

        Raises:
            WorkerError: it failed.
        """
        self._count += 1
        plan = FixedPlan(str(self._count), self._prepared.fitness, Asked(items, {}))
        evaluations = Evaluations(self._pool, plan, self._folder)
        evaluations.start(recipe)
        outcome = evaluations.outcome(recipe)
        if outcome.responses is None:
            raise WorkerError(f"a merge could not be evaluated, so no run can be:\n{outcome.error}")
        return _Ran(outcome, evaluations, ResponseStore(self._folder, plan.name).path.stat().st_size)


class _Ran(NamedTuple):
    """An evaluation: its outcome, where it is remembered, and the bytes of its stored responses."""

    outcome: Outcome
    evaluations: Evaluations
    bytes: int

    @property
    def seconds(self) -> float:
        """What it took without its merge."""
        return self.outcome.seconds - self.outcome.merge_seconds


def probe(prepared: Prepared, placement: Placement, display: Display, ray_address: str | None) -> Probed:
    """Evaluate a few merges in one worker of a placement.

    Raises:
        WorkerError: the worker cannot be built, or a merge cannot be evaluated.
    """
    began = time.perf_counter()
    experiment = prepared.experiment
    average = uniform(list(dict.fromkeys(experiment.parents.values())), prepared.dtype, align=experiment.merge.align)
    drawn = list(random_merges(prepared, CalibrationConfig(models=4)).values())
    with (
        tempfile.TemporaryDirectory(prefix="evomerge-plan-") as folder,
        open_workers(_alone(prepared, placement), display, ray_address, lambda: None) as workers,
    ):
        prober = _Prober(prepared, workers.pool, Path(folder))
        one = {task: ids[:1] for task, ids in prepared.fitness.items("search").items()}
        cold = prober.run(average, one)
        build = time.perf_counter() - began - cold.outcome.seconds
        large = _sample(prepared, workers.batch_sizes or {})
        small = {task: ids[: max(1, len(ids) // 4)] for task, ids in large.items()}
        even = prober.run(average, large)
        prepares = prober.run(drawn[0], one)  # what the search's method prepares; the uniform merge's is another
        warm = prober.run(drawn[1], large)
        parts = {task: prober.run(drawn[1], {task: ids}).seconds for task, ids in small.items()}
        again = prober.run(drawn[2], one)
        memory = _memory_of(warm.outcome.worker)
        genome = {gene.name: gene.initial for gene in prepared.space.genes}
        trial = warm.evaluations.trial(100, genome, drawn[1])
    merge = Span(*sorted(ran.outcome.merge_seconds for ran in (warm, again)))
    counts = {task: len(ids) for task, ids in large.items()}
    each = {task: seconds / len(small[task]) for task, seconds in parts.items()}
    item_bytes = (even.bytes - cold.bytes) / max(1, sum(counts.values()) - len(counts))
    return Probed(
        seconds=time.perf_counter() - began,
        build=build,
        first=max(0.0, cold.outcome.seconds - again.outcome.seconds)
        + max(0.0, prepares.outcome.merge_seconds - merge.high),
        merge=merge,
        sample=counts,
        large=Span(*sorted((even.seconds, warm.seconds))),
        each=each,
        fixed=_fixed(warm.seconds, counts, parts, small, each),
        item_bytes=item_bytes,
        recipe_bytes=max(0.0, cold.bytes - len(counts) * item_bytes),
        trial_bytes=_line(prepared, trial),
        memory=memory,
        batch_size=warm.outcome.batch_size,
    )


def _sample(prepared: Prepared, sizes: Mapping[str, int]) -> Items:
    """Return the large sample: two batches of each task, or all items where there are fewer."""
    batch = prepared.experiment.fitness.batch_size
    usual = batch if isinstance(batch, int) else USUAL_BATCH
    items = prepared.fitness.items("search")
    return {task: ids[: max(FEWEST, 2 * sizes.get(task, usual))] for task, ids in items.items()}


def _fixed(
    whole: float, counts: Mapping[str, int], parts: Mapping[str, float], small: Items, each: Mapping[str, float]
) -> float:
    """Return what an evaluation costs in any case: where the line through two sizes of samples meets no items."""
    share = sum(parts.values()) / sum(each[task] * count for task, count in counts.items())
    smaller = sum(len(ids) for ids in small.values()) < sum(counts.values())
    return max(0.0, (sum(parts.values()) - whole * share) / (1 - share)) if smaller else 0.0


def _alone(prepared: Prepared, placement: Placement) -> Prepared:
    """Return the experiment with one worker, like those of a placement."""
    workers = prepared.experiment.workers.model_copy(
        update={"count": 1, "threads": placement.threads, "devices": placement.device, "overlap": False}
    )
    return replace(prepared, experiment=prepared.experiment.model_copy(update={"workers": workers}))


def _line(prepared: Prepared, trial: Trial) -> int:
    """Return the bytes that a trial takes in the journal, with what the quality of the front adds."""
    trial = replace(trial, front={"hypervolume": 0.123456789, "size": 10, "spread": 0.123456789})
    with tempfile.TemporaryDirectory(prefix="evomerge-plan-") as folder:
        path = Path(folder) / "journal.log"
        journal = Journal.write(path, "plan", prepared.objectives)
        before = path.stat().st_size
        journal.append(trial, prepared.space.genes)
        return path.stat().st_size - before


def _memory_of(worker: str) -> int | None:
    """Return the pages that a worker shares with nobody; None if it is on another machine."""
    node, _, process = worker.rpartition(":")
    if node != os.uname().nodename:
        return None
    try:
        return int(psutil.Process(int(process)).memory_full_info().uss)
    except (psutil.Error, ValueError):
        return None
