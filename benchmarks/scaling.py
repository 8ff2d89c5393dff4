"""What a driver costs, and how many workers it can feed: the real loop, simulated evaluations.

    python benchmarks/scaling.py efficiency [--workers 1 8 64 256] [--sigmas 0.3 0.5 1.0] [--searchers random nsga2 …]
    python benchmarks/scaling.py schedule [--workers 8 64 256] [--sigmas 0.3 0.5 1.0] [--in-flight …]
    python benchmarks/scaling.py cost [--genes 200] [--trials 1000]
    python benchmarks/scaling.py memory [--genes 200] [--trials 100000]
    python benchmarks/scaling.py resume [--genes 20 200] [--trials 10000]
    python benchmarks/scaling.py staleness [--in-flight 8 16 …] [--trials 2000] [--seeds 5]

Searcher, search space, recipes, journal (a file, flushed to the disk at each trial), stored responses, front and loop
are those of a run; only merging, evaluating and Ray are not there. `efficiency` simulates events: evaluations take
log-normal seconds, and the clock goes on by the driver's own processor time, and by a millisecond whenever it waits for
the disk; `schedule` is the same for a driver that costs nothing. `docs/workers.md` has the results.
"""

from __future__ import annotations

import argparse
import gc
import heapq
import math
import os
import random
import statistics
import tempfile
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import numpy as np

from evomerge.experiments import fronts
from evomerge.experiments.evaluations import Asked, Evaluations, Scored
from evomerge.experiments.front_file import FrontFile
from evomerge.experiments.identity import usual_in_flight
from evomerge.experiments.journal import Journal, Trial
from evomerge.experiments.loop import Candidate, drained, search
from evomerge.experiments.threads import one_thread
from evomerge.experiments.tracker import Tracker
from evomerge.fitness.responses import Responses, TaskResponses
from evomerge.recipes import Recipe
from evomerge.search_spaces import SearchSpace
from evomerge.search_spaces.base import ParentsInfo, build_search_space
from evomerge.search_spaces.genes import Genome
from evomerge.search_spaces.parameter_config import ParameterSpaceConfig
from evomerge.searchers import ObjectiveSpec, Searcher, build_searcher, read_searcher
from evomerge.workers import Outcome

OBJECTIVES = (ObjectiveSpec("math", "maximize"), ObjectiveSpec("japanese", "maximize"))
CORNER = {"math": 0.0, "japanese": 0.0}
ITEMS = 50  # of each task
DISK_SECONDS = (
    0.001  # of a wait for the disk, in simulations: on a busy machine a measured one is mostly a wait for a core
)
SEARCHERS = {
    "random": {"kind": "random"},
    "qmc": {"kind": "qmc"},
    "nsga2": {"kind": "nsga2"},
    "cma-es": {"kind": "cma-es"},
    "map": {"kind": "map"},
    "tpe": {"kind": "optuna", "sampler": "TPESampler"},
}
WEIGHTS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def make_space(genes: int) -> SearchSpace:
    """Return the space of TIES, layer by layer: 20 genes (two parents) or 200 (four)."""
    parents, layers = {20: (2, 4), 200: (4, 24)}[genes]
    names = ["model.embed_tokens.weight", "lm_head.weight"]
    names += [f"model.layers.{layer}.{weight}.weight" for layer in range(layers) for weight in WEIGHTS]
    info = ParentsInfo(
        "org/base", {f"p{n}": f"org/parent-{n}" for n in range(parents)}, tuple(names), layers, "bfloat16"
    )
    space = build_search_space(ParameterSpaceConfig(method="ties"), info)
    assert len(space.genes) == genes
    return space


def make_searcher(name: str, space: SearchSpace, trials: int, seed: int = 0) -> Searcher:
    """Return a searcher over all of the space."""
    config = read_searcher({**SEARCHERS[name], "seed": seed})
    return build_searcher(config, space.genes, OBJECTIVES, trials, space.starting_points())


def score(genome: Genome) -> dict[str, float]:
    """Return two objectives that pull against each other: near 0.3 everywhere, near 0.6 everywhere."""
    values = np.array([float(value) for value in genome.values()])
    return {name: 1 - float(np.square(values - goal).mean()) for name, goal in (("math", 0.3), ("japanese", 0.6))}


class Disk:
    """Counts how often, and for how many seconds, `os.fsync` waited."""

    def __init__(self) -> None:
        self.count, self.waited = 0, 0.0
        self._fsync = os.fsync

    @contextmanager
    def watched(self) -> Iterator[Disk]:
        """Count within."""

        def fsync(descriptor: int) -> None:
            began, worked = time.perf_counter(), time.process_time()
            self._fsync(descriptor)
            self.count += 1
            self.waited += time.perf_counter() - began - (time.process_time() - worked)

        os.fsync = fsync
        try:
            yield self
        finally:
            os.fsync = self._fsync


class Clock:
    """Virtual seconds: the driver's processor time, its waits for the disk, and its waits for workers."""

    def __init__(self, disk: Disk) -> None:
        self._disk, self._skipped = disk, 0.0
        self._began = time.process_time()

    @property
    def now(self) -> float:
        return time.process_time() - self._began + DISK_SECONDS * self._disk.count + self._skipped

    def wait_until(self, moment: float) -> None:
        self._skipped += max(0.0, moment - self.now)


class SimulatedPool:
    """Workers that take log-normal seconds for a recipe, and get their next one when the driver looks.

    Args:
        clock: of the simulation.
        workers: how many.
        sigma: of the logarithm of seconds.
        median: of the seconds.
    """

    def __init__(self, clock: Clock, workers: int, sigma: float, median: float) -> None:
        self._clock, self._idle = clock, workers
        self._draw = random.Random(0)
        self._sigma, self._median = sigma, median
        self._waiting: deque[str] = deque()
        self._running: list[tuple[float, str]] = []
        self.spans: list[tuple[float, float]] = []
        answers = {
            task: TaskResponses(
                tuple(f"{task}-{n}" for n in range(ITEMS)), {"acc,none": [float(n % 2) for n in range(ITEMS)]}
            )
            for task in ("math", "japanese")
        }
        self._answer = Responses(answers).to_json()

    def submit(self, key: str, recipe: str, *items: object, ahead: bool = False, lineage: object = None) -> None:
        """Queue a recipe."""
        self._waiting.append(key)
        self.dispatch()

    def dispatch(self) -> None:
        """Give what waits to the idle workers."""
        while self._idle and self._waiting:
            self._idle -= 1
            began = self._clock.now
            ends = began + self._median * math.exp(self._sigma * self._draw.gauss(0, 1))
            self.spans.append((began, ends))
            heapq.heappush(self._running, (ends, self._waiting.popleft()))

    def next(self, timeout: float) -> tuple[str, Outcome] | None:
        """Return what is finished, or None after ``timeout`` seconds."""
        self.dispatch()
        now = self._clock.now
        if not self._running or self._running[0][0] > now + timeout:
            self._clock.wait_until(now + timeout)
            return None
        ends, key = heapq.heappop(self._running)
        self._clock.wait_until(ends)
        self._idle += 1
        return key, Outcome(self._answer, seconds=1.0, worker="simulated", device="none", batch_size=8)


class SimulatedPlan:
    """All items for each recipe, scored by its genome."""

    name, digest, asks_again = "search", "simulated", False

    def begin(self, recipe: Recipe, genome: Genome):
        asked = Asked({"math": (), "japanese": ()}, {})
        return lambda responses: asked if responses is None else None

    def score(self, responses: Responses, genome: Genome, recipe_hash: str) -> Scored:
        return Scored(score(genome), {}, {})


class Immediate:
    """An evaluator that is done at once and keeps nothing."""

    def start(self, recipe: Recipe, genome: Genome) -> None:
        """Nothing to do."""

    def finish(self, candidate: Candidate) -> Trial:
        """Return the trial."""
        now = datetime.now()
        items = {"math": ITEMS, "japanese": ITEMS}
        return Trial(
            candidate.number, candidate.genome, score(candidate.genome), candidate.recipe.hash, seconds=1.0,
            worker="simulated", device="none", batch_size=8, items=items, started=now, finished=now,
        )  # fmt: skip


class Laps:
    """Processor time, by part of the driver."""

    def __init__(self) -> None:
        self.seconds = Counter[str]()

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        began = time.process_time()
        yield
        self.seconds[name] += time.process_time() - began

    def wrap(self, name: str, function):
        def timed(*arguments, **named):
            with self.of(name):
                return function(*arguments, **named)

        return timed


class Timed:
    """An object whose named methods are timed."""

    def __init__(self, inner: object, laps: Laps, **names: str) -> None:
        self._inner = inner
        for method, name in names.items():
            setattr(self, method, laps.wrap(name, getattr(inner, method)))

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)


@dataclass(frozen=True)
class Driver:
    """All that a run does for its trials, as ``evomerge.experiments.run`` does it."""

    folder: Path
    space: SearchSpace
    laps: Laps

    def run(
        self, searcher: Searcher, evaluator: object, trials: int, in_flight: int, seen=lambda trial: None
    ) -> Tracker:
        """Run or resume a search."""
        laps, space = self.laps, self.space
        with laps.of("open"):
            journal = Journal.write(self.folder / "journal.log", "scaling", OBJECTIVES)
            recorded = deque(journal.trials())
        known = len(recorded)
        tracker = Tracker(OBJECTIVES, CORNER)
        front = FrontFile(self.folder / "front.jsonl", lambda trial: space.express(trial.genome))

        def record(trial: Trial) -> None:
            with laps.of("tracker"):
                tracker.add(trial)
            with laps.of("journal"):
                journal.append(replace(trial, front=tracker.quality.to_json()), space.genes)

        def told(trial: Trial, open_: int) -> None:
            if trial.number < known:
                with laps.of("tracker"):
                    tracker.add(trial)
            if trial.number >= known - 1:
                with laps.of("front"):
                    front.update(tracker.front)
            tracker.progress(trials, open_, 1)
            seen(trial)

        with one_thread():
            search(
                Timed(searcher, laps, ask="ask", tell="tell"),
                Timed(space, laps, express="express"),
                Timed(evaluator, laps, start="start", finish="finish"),
                recorded=drained(recorded),
                record=record,
                told=told,
                budget=trials,
                in_flight=in_flight,
            )
        return tracker


def efficiency(name: str, workers: int, sigma: float, options: argparse.Namespace) -> str:
    """Return a line: the workers' busy share in steady state and over all, and the driver's."""
    space, in_flight = make_space(options.genes), options.in_flight or usual_in_flight(workers, learns=True)
    trials = in_flight + max(options.rounds * workers, 100)
    with tempfile.TemporaryDirectory() as folder, Disk().watched() as disk:
        clock, laps = Clock(disk), Laps()
        pool = SimulatedPool(clock, workers, sigma, options.median)
        evaluations = Evaluations(lambda: pool, SimulatedPlan(), Path(folder) / "responses")
        searcher = make_searcher(name, space, trials)
        spent = time.process_time()
        Driver(Path(folder), space, laps).run(searcher, evaluations, trials, in_flight)
        spent = time.process_time() - spent
    began, ended = pool.spans[min(in_flight, len(pool.spans) // 4)][0], pool.spans[-1][0]
    steady = busy(pool.spans, began, ended) / workers
    whole = busy(pool.spans, 0.0, clock.now) / workers
    return (
        f"{name:<8} {workers:4d} workers, sigma {sigma:.1f}, {in_flight:5d} in flight, {trials:6d} trials: busy "
        f"{100 * steady:5.1f}% in steady state, {100 * whole:5.1f}% with filling and draining; driver "
        f"{1e3 * spent / trials:5.2f} ms a trial"
    )


def schedule(workers: int, in_flight: int, sigma: float, options: argparse.Namespace) -> str:
    """Return a line: the workers' busy share in steady state where the driver costs nothing, over several draws."""
    shares = []
    for seed in range(options.seeds):
        draw, free = random.Random(seed), [0.0] * workers
        spans: list[tuple[float, float]] = []
        told: list[float] = []  # when all trials up to each were finished
        for number in range(in_flight + 2 * options.rounds * workers):
            asked = told[number - in_flight] if number >= in_flight else 0.0
            began = max(asked, heapq.heappop(free))
            ends = began + math.exp(sigma * draw.gauss(0, 1))
            heapq.heappush(free, ends)
            spans.append((began, ends))
            told.append(max(told[-1], ends) if told else ends)
        shares.append(100 * busy(spans, spans[in_flight][0], spans[-1][0]) / workers)
    return (
        f"{workers:4d} workers, sigma {sigma:.1f}, {in_flight:5d} in flight: busy {statistics.mean(shares):5.1f}% "
        f"(least {min(shares):.1f}%)"
    )


def busy(spans: Sequence[tuple[float, float]], began: float, ended: float) -> float:
    """Return the mean number of spans under way between two moments."""
    return sum(max(0.0, min(end, ended) - max(start, began)) for start, end in spans) / (ended - began)


def cost(name: str, options: argparse.Namespace) -> str:
    """Return the driver's milliseconds a trial, part by part, of the repeat in which they are fewest."""
    found = []
    for _ in range(options.repeats):
        space = make_space(options.genes)
        with tempfile.TemporaryDirectory() as folder, Disk().watched() as disk:
            laps = Laps()
            pool = SimulatedPool(Clock(disk), 16, 0.5, 5.0)
            evaluations = Evaluations(lambda pool=pool: pool, SimulatedPlan(), Path(folder) / "responses")
            searcher = make_searcher(name, space, options.trials)
            began = time.process_time()
            Driver(Path(folder), space, laps).run(searcher, evaluations, options.trials, 32)
            total = time.process_time() - began
        parts = {part: 1e3 * seconds / options.trials for part, seconds in laps.seconds.items() if part != "open"}
        found.append((1e3 * total / options.trials, parts, disk.count / options.trials, 1e3 * disk.waited / disk.count))
    total, parts, waits, wait = min(found, key=lambda each: each[0])
    named = ", ".join(f"{part} {milliseconds:.2f}" for part, milliseconds in parts.items())
    disk_waits = f"{waits:.1f} waits for the disk of {wait:.1f} ms"
    return f"{name:<8} {options.genes} genes: {total:.2f} ms of processor time a trial ({named}), {disk_waits}"


def memory(name: str, options: argparse.Namespace) -> Iterator[str]:
    """Yield the driver's resident memory at some numbers of trials."""
    marks = {options.trials // 100, options.trials // 10, options.trials // 2, options.trials}
    space, lines = make_space(options.genes), []

    def seen(trial: Trial) -> None:
        if trial.number + 1 in marks:
            gc.collect()
            lines.append((trial.number + 1, resident()))
            print(f"{name:<8} {trial.number + 1:7d} trials: {resident() / 1e6:7.1f} MB", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        searcher = make_searcher(name, space, options.trials)
        Driver(Path(folder), space, Laps()).run(searcher, Immediate(), options.trials, 128, seen)
    first, last = lines[1], lines[-1]
    yield f"{name:<8} {options.genes} genes: {(last[1] - first[1]) / (last[0] - first[0]):.0f} bytes a trial"


def resident() -> int:
    """Return the resident bytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def resume(name: str, genes: int, options: argparse.Namespace) -> str:
    """Return the seconds that resuming a finished journal takes, part by part."""
    space = make_space(genes)
    with tempfile.TemporaryDirectory() as folder:
        driver = Driver(Path(folder), space, Laps())
        driver.run(make_searcher(name, space, options.trials), Immediate(), options.trials, 16)
        found = []
        for _ in range(options.repeats):
            laps = Laps()
            began, worked = time.perf_counter(), time.process_time()
            searcher = make_searcher(name, space, options.trials)
            tracker = replace(driver, laps=laps).run(searcher, Immediate(), options.trials, 16)
            found.append((time.process_time() - worked, time.perf_counter() - began, laps.seconds))
            assert tracker.done == options.trials
        size = (Path(folder) / "journal.log").stat().st_size
    worked, wall, seconds = min(found, key=lambda each: each[0])
    named = ", ".join(f"{part} {each:.1f}" for part, each in seconds.items())
    return (
        f"{name:<8} {genes:3d} genes, {options.trials} trials ({size / 1e6:.0f} MB): {worked:.1f} s of processor time, "
        f"{wall:.1f} s by the clock ({named})"
    )


def zdt1(genome: Genome) -> dict[str, float]:
    """Zitzler, Deb and Thiele 2000, problem 1, to be maximised."""
    first, *rest = (float(value) for value in genome.values())
    rise = 1 + 9 * sum(rest) / len(rest)
    return {"math": 1 - first, "japanese": 10 - rise * (1 - math.sqrt(first / rise))}


def rosenbrock(genome: Genome) -> dict[str, float]:
    """The banana function on [0, 1], to be maximised, twice."""
    points = [4 * float(value) - 2 for value in genome.values()]
    value = sum(100 * (y - x * x) ** 2 + (1 - x) ** 2 for x, y in pairwise(points))
    return {"math": -value, "japanese": -value}


def staleness(name: str, in_flight: int, options: argparse.Namespace) -> list[float]:
    """Return what a search reaches, by seed: the share of ZDT1's hypervolume, or -log10 of Rosenbrock for CMA-ES."""
    from evomerge.search_spaces.genes import FloatGene

    genes = tuple(FloatGene(f"x{n}", 0.0, 1.0, 0.5) for n in range(10))
    function = rosenbrock if name == "cma-es" else zdt1
    reached = []
    for seed in range(options.seeds):
        searcher = build_searcher(read_searcher({**SEARCHERS[name], "seed": seed}), genes, OBJECTIVES, options.trials)
        open_: deque[Mapping] = deque()
        asked, scores = 0, []
        while len(scores) < options.trials:
            while asked < options.trials and len(open_) < in_flight:
                genome = searcher.ask()
                if genome is None:
                    break
                open_.append(genome)
                asked += 1
            genome = open_.popleft()
            scores.append(function(genome))
            searcher.tell(genome, scores[-1])
        if name == "cma-es":
            reached.append(-math.log10(-max(each["math"] for each in scores)))
        else:
            reached.append(100 * fronts.hypervolume(scores, OBJECTIVES, {"math": 0.0, "japanese": 0.0}) / (9 + 2 / 3))
    return reached


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measure", choices=("efficiency", "schedule", "cost", "memory", "resume", "staleness"))
    parser.add_argument("--searchers", nargs="+", choices=SEARCHERS)
    parser.add_argument("--genes", nargs="+", type=int, choices=(20, 200))
    parser.add_argument("--trials", type=int)
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 8, 64, 256])
    parser.add_argument("--sigmas", nargs="+", type=float, default=[0.3, 0.5, 1.0])
    parser.add_argument("--median", type=float, default=5.0, help="seconds of an evaluation")
    parser.add_argument("--in-flight", nargs="+", type=int, help="default: as a run chooses it")
    parser.add_argument("--rounds", type=int, default=30, help="evaluations a worker")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    chosen, many = options.searchers, options.in_flight
    if options.measure == "efficiency":
        options.genes, options.in_flight = (options.genes or [200])[0], (many or [None])[0]
        for name in chosen or ["random"]:
            for workers in options.workers:
                for sigma in options.sigmas:
                    print(efficiency(name, workers, sigma, options), flush=True)
    elif options.measure == "schedule":
        for workers in options.workers:
            for sigma in options.sigmas:
                for in_flight in many or [max(8, 2 * workers), usual_in_flight(workers, learns=True), 16 * workers]:
                    print(schedule(workers, in_flight, sigma, options), flush=True)
    elif options.measure == "resume":
        options.trials = options.trials or 10_000
        for name in chosen or ["cma-es", "nsga2", "random"]:
            for genes in options.genes or [20, 200]:
                print(resume(name, genes, options), flush=True)
    elif options.measure == "staleness":
        options.trials = options.trials or 2000
        for name in chosen or ["nsga2", "cma-es"]:
            for in_flight in many or [8, 16, 64, 256, 512, 1280]:
                reached = staleness(name, in_flight, options)
                print(
                    f"{name:<8} {in_flight:5d} in flight: {statistics.mean(reached):6.2f} (least {min(reached):.2f})",
                    flush=True,
                )
    else:
        options.genes = (options.genes or [200])[0]
        options.trials = options.trials or (1000 if options.measure == "cost" else 100_000)
        for name in chosen or (["random", "nsga2", "cma-es"] if options.measure == "cost" else ["random"]):
            for line in [cost(name, options)] if options.measure == "cost" else memory(name, options):
                print(line, flush=True)


if __name__ == "__main__":
    main()
