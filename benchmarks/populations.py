"""Searchers of models beside searchers of weights, after equally many trials: fronts, archives and best merges.

    python benchmarks/populations.py TRIALS [--seeds 10] [--searchers m2n2 nsga2 …] [--out runs/populations]

The zoo's three experts, their base and the three objectives of `experiments/searchers`. M2N2, CycleQD and MAP-Elites
cross models as `experiments/zoo-m2n2` and `experiments/zoo-cycle-qd` have it; the parents that they evaluate first are
among the trials. The others vary three weights of one merge of the experts. All are also run on mixtures of the
experts, which is what crossing without mutation comes to, or with a crossover that leaves the mixtures.

Whatever the searcher, its trials are measured alike:

- the hypervolume of their front beyond the worst scores of base, experts and uniform merge, as a share of that of the
  front of a dense grid of weights (`benchmarks/tables/zoo-3.csv`): on the search items, and both fronts scored again on
  items that nobody searched on;
- the mean score, on these unseen items, of the trial that is best on the search items;
- how many niches of one grid of the objectives they fill, and the sum of the best scores in these (QD score). The grid
  has ends that the dense grid's merges reach.

Prints means and 95% intervals (t) over the seeds, and the rank test of the unseen front against NSGA-II's. Each search
is kept in OUT, and what is there is not done again.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats
from searchers import SEARCHERS, Bench, of_grid
from zoo_grid import TABLES, experiment

from evomerge.cli.display import make_display
from evomerge.experiments import fronts
from evomerge.experiments.preflight import Prepared, prepare
from evomerge.experiments.rank_tests import holm, mann_whitney
from evomerge.experiments.run_folder import write_json
from evomerge.experiments.run_workers import open_workers
from evomerge.searchers import ObjectiveSpec
from evomerge.searchers.grids import AxisConfig, GridArchive, axes_of

PARENTS = 3
BINS = 10
ROUNDED = 1e-3  # weights in the table are
REFERENCE = "nsga2"  # what the others are tested against
WEIGHTS = "{kind: parameter, method: task_arithmetic, granularity: global}"
MIXTURES = "{kind: parameter, method: linear, granularity: global, weights: simplex}"
SPLIT_SLERP = "{kind: lineage, crossover: m2n2}"
CYCLE_QD = "{kind: lineage, crossover: cycle-qd, mutation: svd}"
TASK_ARITHMETIC = "{kind: lineage, crossover: task_arithmetic}"
M2N2 = {"kind": "m2n2", "archive": 12}


@dataclass(frozen=True)
class Entry:
    """A row of the table.

    Attributes:
        space: what is searched.
        searcher: its options, without the seed.
        predictions: how many of the trials are points of the predicted front, evaluated on the unseen items only.
    """

    space: str
    searcher: Mapping[str, Any]
    predictions: int = 0


ENTRIES = {
    "random": Entry(WEIGHTS, SEARCHERS["random"]),
    "nsga2": Entry(WEIGHTS, SEARCHERS["nsga2"]),
    "cma-es": Entry(WEIGHTS, SEARCHERS["cma-es"]),
    "map": Entry(WEIGHTS, {"kind": "map", "confirm": 0}),
    "map, 20 predicted": Entry(WEIGHTS, {"kind": "map", "confirm": 20}, predictions=20),
    "m2n2": Entry(SPLIT_SLERP, M2N2),
    "cycle-qd": Entry(CYCLE_QD, {"kind": "cycle-qd", "bins": 10, "mutation": 0.2, "aggregate": 40}),
    "map-elites": Entry(SPLIT_SLERP, {"kind": "map-elites"}),
    "random, mixtures": Entry(MIXTURES, SEARCHERS["random"]),
    "nsga2, mixtures": Entry(MIXTURES, SEARCHERS["nsga2"]),
    "m2n2, task arithmetic": Entry(TASK_ARITHMETIC, M2N2),
}


class Measures(NamedTuple):
    """What one search came to; see the module's docstring. Fronts are volumes, not shares yet."""

    front: float
    unseen_front: float
    unseen_best: float
    niches: float
    qd_score: float
    size: float


@dataclass(frozen=True)
class Yardstick:
    """What every search is measured by.

    Attributes:
        objectives: of all searches.
        corners: split → the reference point of hypervolumes.
        grid: objective → its niches.
    """

    objectives: Sequence[ObjectiveSpec]
    corners: Mapping[str, Mapping[str, float]]
    grid: Mapping[str, AxisConfig]

    def archive(self, scores: Sequence[Mapping[str, float]]) -> GridArchive:
        """Return the grid of niches after all these models, in their order, were let in."""
        archive = GridArchive(axes_of(self.objectives, self.grid, BINS), self.objectives)
        for number, values in enumerate(scores):
            archive.add(number, values)
        return archive

    def mean(self, scores: Mapping[str, float]) -> float:
        return fronts.weighted_mean(scores, self.objectives)

    def measured(self, kept: Mapping[str, Any]) -> Measures:
        """Return what a search, as `searched` returns it, came to."""
        trials, unseen = kept["trials"], kept["unseen"]
        best = max(range(len(kept["front"])), key=lambda place: self.mean(trials[kept["front"][place]]))
        archive = self.archive(trials)
        return Measures(
            fronts.hypervolume(trials, self.objectives, self.corners["search"]),
            fronts.hypervolume([*unseen, *kept["predicted"]], self.objectives, self.corners["confirmation"]),
            self.mean(unseen[best]),
            len(archive.elites),
            archive.qd_score,
            len(unseen) + len(kept["predicted"]),
        )


def searched(bench: Bench, entry: Entry, seed: int, trials: int) -> dict[str, Any]:
    """Return what one search found: its genomes, and scores on the search items and on unseen ones."""
    told, searcher = bench.run(entry.searcher, seed, trials - entry.predictions)
    scores = [trial.objectives or {} for trial in told]
    first = {told[row].recipe_hash: row for row in reversed(fronts.front(scores, bench.prepared.objectives))}
    front = sorted(first.values())
    recipes = [bench.prepared.space.express(told[row].genome) for row in front]
    predicted = bench.predicted(searcher)[: entry.predictions]
    return {
        "genomes": [trial.genome for trial in told],
        "hashes": [trial.recipe_hash for trial in told],
        "trials": scores,
        "front": front,
        "unseen": bench.scores(recipes, "confirmation"),
        "predicted": bench.scores(predicted, "confirmation"),
    }


def prepared_for(entry: Entry, items: int) -> Prepared:
    searcher = json.dumps(dict(entry.searcher))  # which is YAML
    settings = (f"search_space={entry.space}", f"searcher={searcher}", f"fitness.confirmation_items={items}")
    return prepare(experiment(PARENTS, *settings))


def of_table() -> list[dict[str, float]]:
    """Return the rows of the dense grid: a weight for each parent, and the scores."""
    with (TABLES / f"zoo-{PARENTS}.csv").open(encoding="utf-8", newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def interval(values: np.ndarray) -> float:
    """Return half the 95% interval of the mean (t)."""
    return float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5)


def main() -> None:
    """Run the benchmark."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("trials", type=int, help="of each search")
    arguments.add_argument("--seeds", type=int, default=10)
    arguments.add_argument("--searchers", nargs="+", choices=ENTRIES, default=list(ENTRIES))
    arguments.add_argument("--items", type=int, default=200, help="of each task that fronts are scored again on")
    arguments.add_argument("--out", type=Path, default=Path("runs/populations"))
    options = arguments.parse_args()
    if options.trials < (fewest := max(4 * ENTRIES[name].predictions for name in options.searchers)):
        arguments.error(f"at least {fewest} trials are needed, of which some are predictions")
    out = options.out / f"{options.items}-items"
    prepared = {name: prepared_for(ENTRIES[name], options.items) for name in options.searchers}
    one = prepare(experiment(PARENTS, f"fitness.confirmation_items={options.items}"))
    objectives, rows = one.objectives, of_table()
    ends = {o.name: [row[o.name] for row in rows] for o in objectives}
    grid = {name: AxisConfig(low=min(values), high=max(values), bins=BINS) for name, values in ends.items()}
    found: dict[str, list[Measures]] = {name: [] for name in options.searchers}
    with make_display() as display, open_workers(one, display, None, lambda: None) as workers:
        corners, volumes = of_grid(Bench(one, workers.pool, out / "responses"), PARENTS, ["search", "confirmation"])
        yardstick = Yardstick(objectives, corners, grid)
        for seed in range(options.seeds):
            for name in options.searchers:
                kept = out / f"{options.trials}-trials" / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}.json"
                if not kept.exists():
                    kept.parent.mkdir(parents=True, exist_ok=True)
                    bench = Bench(prepared[name], workers.pool, out / "responses")
                    write_json(kept, searched(bench, ENTRIES[name], seed, options.trials))
                found[name].append(yardstick.measured(json.loads(kept.read_text(encoding="utf-8"))))
                print(name, seed, *(f"{value:.4f}" for value in found[name][-1]), flush=True)
    tell(found, yardstick, volumes, rows, options.trials)


def tell(
    found: Mapping[str, Sequence[Measures]],
    yardstick: Yardstick,
    volumes: Mapping[str, float],
    rows: Sequence[Mapping[str, float]],
    trials: int,
) -> None:
    """Print the table."""
    archive = yardstick.archive(rows)
    totals = np.array([list(row.values())[:PARENTS] for row in rows]).sum(axis=1)
    on_front = totals[fronts.front(rows, yardstick.objectives)]
    mixed = [row for row, total in zip(rows, totals, strict=True) if total < 1 + ROUNDED]
    mixed_volume = fronts.hypervolume(mixed, yardstick.objectives, yardstick.corners["search"])
    for split, corner in yardstick.corners.items():
        told = ", ".join(f"{name} {value:g}" for name, value in corner.items())
        print(f"reference point on {split} items: {told}; hypervolume of the grid's front {volumes[split]:.4f}")
    told = ", ".join(f"{name} {axis.low:g} to {axis.high:g}" for name, axis in yardstick.grid.items())
    print(f"{archive.cells} niches: {told}; the grid's {len(rows)} merges fill {len(archive.elites)}")
    print(
        f"weights of the {len(on_front)} merges on the grid's front sum to {np.median(on_front):.2f} (median); the "
        f"{len(mixed)} of the grid whose weights sum to at most 1, {np.sum(on_front < 1 + ROUNDED)} of them on the "
        f"front, have {100 * mixed_volume / volumes['search']:.1f}% of its hypervolume"
    )
    against = {}
    if REFERENCE in found:
        others = [name for name in found if name != REFERENCE]
        unseen = {name: [each.unseen_front for each in found[name]] for name in found}
        p_values = holm([mann_whitney(unseen[name], unseen[REFERENCE]) for name in others])
        against = dict(zip(others, p_values, strict=True))
    print(f"\n{trials} trials, {len(next(iter(found.values())))} seeds")
    print(f"| | front | on unseen items | p against {REFERENCE} | best merge, unseen | niches | QD score | models |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, each in found.items():
        columns = Measures(*np.array(each).T)
        front = told_as(100 * columns.front / volumes["search"], 1, "%")
        unseen_front = told_as(100 * columns.unseen_front / volumes["confirmation"], 1, "%")
        p_value = f"{against[name]:.2g}" if name in against else ""
        best, niches = told_as(columns.unseen_best, 3), told_as(columns.niches, 1)
        qd_score, size = told_as(columns.qd_score, 1), f"{columns.size.mean():.0f}"
        print(f"| {name} | {front} | {unseen_front} | {p_value} | {best} | {niches} | {qd_score} | {size} |")


def told_as(values: np.ndarray, digits: int, unit: str = "") -> str:
    """Return the mean, with its interval where there are several values."""
    half = f" ± {interval(values):.{digits}f}" if len(values) > 1 else ""
    return f"{values.mean():.{digits}f}{half}{unit}"


if __name__ == "__main__":
    main()
